# Has Nix know the store paths that a machine was booted from: loads the registration that `regInfo=PATH`
# on the kernel's command line names (the file `registration` of nixpkgs' `closureInfo`). POSIX shell;
# needs nix-store(1).
set -eu

cmdline=${CMDLINE:-/proc/cmdline}
registration=
for word in $(cat "$cmdline"); do
    case $word in
        regInfo=*) registration=${word#regInfo=} ;;
    esac
done
if [ -z "$registration" ]; then
    echo "the kernel's command line has no regInfo=PATH, so that Nix does not know this system's own" \
        "store paths and would collect them as garbage; add regInfo=CLOSURE-INFO/registration, where" \
        "CLOSURE-INFO is services.castore-fs.virtiofs.<name>.registration of the host" >&2
    exit 1
fi
nix-store --load-db <"$registration"
