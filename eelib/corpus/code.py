"""Programming tasks of HumanEval as words for the user: to complete a function, or to write one that is described."""

import ast
import re

_EXAMPLES = re.compile(r">>>|(?:\bfor )?\bexamples?\b|\bfor instance\b|==>|➞", re.IGNORECASE)


def completion(prompt: str) -> str:
    """Asks for the rest of a function, its signature and docstring given: answers repeat much of that."""
    return f"Complete this function:\n\n```python\n{prompt.strip()}\n```"


def description(prompt: str) -> str:
    """Asks for the same function in words, in one line, without code and without examples: answers repeat little."""
    functions = [node for node in ast.parse(prompt).body if isinstance(node, ast.FunctionDef)]
    function = functions[-1]  # helpers come first
    words = _EXAMPLES.split(ast.get_docstring(function) or "")[0]
    arguments = ", ".join(argument.arg for argument in function.args.args)
    asked = f"Write a Python function {function.name}({arguments}), without a docstring."
    return " ".join([asked, *words.split()])
