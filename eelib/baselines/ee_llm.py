"""EE-LLM (arXiv 2312.04916): missing keys and values recomputed from waiting tokens."""

from eelib.decoding.session import Session


class EELLMSession(Session):
    """Early exit in which every pass recomputes all tokens that wait.

    For `generate(..., verify=False, session=EELLMSession)`. In exact arithmetic the text is that of this engine, which
    resumes waiting positions where they left; only the work differs: the lower blocks run again for every waiting
    token. EE-LLM exits by `max_prob`, and runs the full model once `max_waiting` tokens wait.
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
