"""What an evaluation is made of.

`documents` says what is scored, `windows` what the model sees to predict each token, `score` runs the model, `tally`
adds up, `confidence` says how sure the numbers are, `parts` where the loss is, `look` and `page` show it in a text.
"""
