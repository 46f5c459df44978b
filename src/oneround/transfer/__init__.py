"""Carriers: a folder that sites and coordinator reach, such as a share, an SFTP or S3 store.

Any carrier will do, since carriers are not trusted: a file may be signed and encrypted, and is
checked by whoever reads it. It gets its final name at the carrier only when it is complete.

====================  ================================  ==========================
URL                   is                                needs
====================  ================================  ==========================
a path, ``file:``     a folder, also a mounted share
``sftp://``           SFTP, host keys checked           ``oneround[sftp]``
``s3://``             an S3-compatible store            ``oneround[s3]``
``webdavs://``        WebDAV over HTTPS                 ``oneround[webdav]``
``https://``          HTTPS PUT of one file, only sent  ``oneround[https]``
====================  ================================  ==========================

Secrets stay out of URLs and command lines: ``ONEROUND_TOKEN`` is sent as bearer token,
``ONEROUND_PASSWORD`` as password of the user in the URL; SFTP takes keys and ``known_hosts`` from
``~/.ssh``, S3 the variables and files of AWS.
"""

from __future__ import annotations

from oneround.transfer.carrier import Carrier, Item, Receipt

__all__ = ["Carrier", "Item", "Receipt"]
