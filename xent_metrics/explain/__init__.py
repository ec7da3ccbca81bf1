"""What is known of a metric or an error, read from its class: for `xent explain`, the documentation and the README.

metrics.py    a metric's facts: formula, options, scores, models …
errors.py     an error's facts: its code, cause and cure
made_up.py    a metric with made-up data, for models to be asked and pictures to be drawn
markdown.py   both kinds of facts as Markdown
"""
