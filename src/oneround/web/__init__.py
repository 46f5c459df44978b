"""The page of the coordinator: who has handed in, hand in, watch the run, read the report.

A small web server for one study, one folder of submissions (INBOX) and one RUN folder. The folders
are the truth: whatever else reads or fills them, such as ``oneround collect`` or ``distill``, goes
on working beside it.

===============  =======================================================================
``state``        tokens, sessions and receipts, in ``INBOX/.oneround.sqlite``
``upload``       a form with a file, taken apart while it comes in
``desk``         what is done with a file: checked, kept or refused, and written down
``progress``     how far the run is
``guard``        what holds for every request and every answer
``app``          the pages
``server``       the process: address, TLS, the link for the coordinator
===============  =======================================================================

``app``, ``guard``, ``upload`` and ``server`` need ``pip install 'oneround[serve]'``.
"""
