"""Whether a model's answer is the gold answer. Texts are parsed here and compared exactly;
none is ever evaluated as code.
"""
