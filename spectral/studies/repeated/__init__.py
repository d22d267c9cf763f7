"""The repeated-sequence study: five attention-only models, measured and compared with a reference experiment on a page.

`plan` says which runs there are, `measurements` looks at them, `claims` holds what is claimed
and by which numbers it is judged, `findings` judges, `figures` and `page` show it, `study` does all of it in order.
"""
