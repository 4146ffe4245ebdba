"""iSCSI target (RFC 7143), sans-IO: bytes in, events and bytes out. `portal` is the asyncio rim and nothing more."""
