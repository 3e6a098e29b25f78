"""Bringing files here: what the step ``fetch`` is made of.

* ``addresses``: where the files of a source come from, and where they lie on disk;
* ``hosts``: where Google Drive, figshare and Zenodo keep the bytes of an address right now;
* ``downloads``: a file over HTTP, whole and verified or not at all;
* ``verification``: what a file must be, and whether the disk has room;
* ``archives``: one member out of a zip, tar or gz;
* ``lockfile``: checksums that the first download recorded.
"""
