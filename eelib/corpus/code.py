"""HumanEval's tasks as prompts: code to complete, or a description."""

import ast
import re

_EXAMPLES = re.compile(r">>>|(?:\bfor )?\bexamples?\b|\bfor instance\b|==>|➞", re.IGNORECASE)


def completion(prompt: str) -> str:
    """Prompt to complete a function; answers repeat much of it."""
    return f"Complete this function:\n\n```python\n{prompt.strip()}\n```"


def description(prompt: str) -> str:
    """Prompt to write the function from one line; answers repeat little.

    In words, without code and examples.
    """
    functions = [node for node in ast.parse(prompt).body if isinstance(node, ast.FunctionDef)]
    function = functions[-1]  # helpers come first
    words = _EXAMPLES.split(ast.get_docstring(function) or "")[0]
    arguments = ", ".join(argument.arg for argument in function.args.args)
    asked = f"Write a Python function {function.name}({arguments}), without a docstring."
    return " ".join([asked, *words.split()])
