def build_prompt(*a, **k): raise NotImplementedError
