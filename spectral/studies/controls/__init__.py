"""The controls study: does the detector speak where an induction head forms, and keep silent where none can?

`plan` says which runs there are, `outcomes` looks at each, `findings` counts, `figures` and `page` show it, `study`
does all of it in order.
"""
