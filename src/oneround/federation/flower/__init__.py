"""A live federation with Flower: the same one file, by another carrier.

Where the sites can be online together, nobody has to send files: ``flwr run`` starts
:mod:`oneround.federation.flower.server` at the coordinator and
:mod:`oneround.federation.flower.client` at the sites. One message goes out and one submission comes
back; then the global model goes out and metrics come back. Needs
``pip install 'oneround[flower]'``.
"""
