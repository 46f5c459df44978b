"""The coordinator's page: who has submitted, submit a file, watch the run, read the report.

A small web server for one study, one folder of submissions (INBOX) and one RUN folder. The folders
are the truth: whatever else reads or fills them, such as ``oneround collect`` or ``oneround
aggregate``, works beside it as before.

===============  =======================================================================
``database``     tokens, sessions and receipts, in ``INBOX/.oneround.sqlite``
``upload``       a form with a file, taken apart while it comes in
``intake``       what is done with a file: taken or refused, and written down
``progress``     how far the run is
``middleware``   what holds for every request and every answer
``app``          the pages
``connections``  silent connections make room for others
``server``       the process: address, TLS, the link for the coordinator
===============  =======================================================================

``app``, ``middleware``, ``upload`` and ``server`` need ``pip install 'oneround[serve]'``.
"""
