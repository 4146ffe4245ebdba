"""The audit for people: which records are shown, what a report says, and how it looks.

    choose     which records a person asked for          told     one record in a person's words
    reading    verified records of all writers, merged    digest   records to counts, unfinished operations, a timeline
    document   the report as one canonical JSON value     page     the same as one HTML page
    signing    the note over both

One rule: everything a record holds may come from an attacker; it is shown, and never obeyed.
"""
