# The type of `list-root`: all roots, EPERM, or an empty directory.
{ types }:

types.either types.bool (types.enum [ "empty" ])
