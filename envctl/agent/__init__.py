"""The agent in a guest: saves and restores the home. Python 3.9 and its standard library; nothing else of ours.

main        the command: install, restore, backup, final, run, status, version
service     the loop: restore, then listen for commands and back up at each interval
backup      one run: scan, read, upload, commit          restore     snapshot → staging → place
scan        what differs from the last run, by stat alone     attributes  what a file carries beside its bytes
client      signed requests to the console, objects by presigned URLs      identity, ed25519   who this machine is
tree, pack, chunking, codec, dedup    the formats (docs/formats/home.md); pure; the console reads with the same code
"""
