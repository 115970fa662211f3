"""EE-LLM (arXiv 2312.04916): exits whose missing keys and values are recomputed by feeding the tokens again."""

from eelib.decoding.session import Session


class EELLMSession(Session):
    """Early exit without verification (`verify=False, session=EELLMSession`): every pass takes along, from the first
    block on, all tokens since the last full one.

    In exact arithmetic the text is that of this engine, which takes waiting positions up from where they left; what
    differs is the work: the lower blocks run again for every token that waits. EE-LLM exits by `max_prob`, and runs
    the full model once `max_waiting` tokens wait.
    """

    max_waiting = 32

    def feed(self, prefix):
        waiting = self.frontier.tokens[:, self.frontier.completed :]
        self.frontier.roll_back(self.frontier.completed)
        for token in waiting.split(1, dim=1):
            self.frontier.feed(token)
        super().feed(prefix)

    def draft(self, prefix):
        if self.frontier.length - self.frontier.completed > self.max_waiting:
            return None
        return super().draft(prefix)
