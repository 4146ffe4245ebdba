"""The pages: what a person sees. `routes` has all of them, `visit` is one request, `rendering` fills the templates.

One rule: a page asks the same verbs as the REST API and the command (`envctl.verbs`), in this process, with the caller of the
browser's sign-in. So it can never do more than they, nor say something else.
"""
