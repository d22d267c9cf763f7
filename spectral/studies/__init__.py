"""Whole experiments: what to train, what to compare, which page to write.

`plan` says what any study consists of, `training` makes its runs, in processes of their own where several are asked
for; `repeated` and `controls` are the studies.
"""
