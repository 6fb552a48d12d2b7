"""The controller: one loop that turns what happens in a job into what is done about it.

`loop.Controller` is the loop; `observer` brings it events, `performer` carries out effects, `election` makes sure that
there is one of it. What is decided, and why, is all in `elastic_train.core.membership`.
"""
