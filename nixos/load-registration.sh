# Has Nix know the store paths that a machine was booted from: loads the registrations that `regInfo=PATH`
# on the kernel's command line names (each the file `registration` of nixpkgs' `closureInfo`; nixpkgs' test
# machines add one of their own, which is loaded if it is there). POSIX shell; needs nix-store(1).
set -eu

cmdline=${CMDLINE:-/proc/cmdline}
loaded=
missing=
for word in $(cat "$cmdline"); do
    case $word in
        regInfo=*)
            registration=${word#regInfo=}
            if [ -r "$registration" ]; then
                nix-store --load-db <"$registration"
                loaded=yes
            else
                missing="$missing $registration"
            fi
            ;;
    esac
done
if [ -z "$loaded" ]; then
    if [ -n "$missing" ]; then
        why="the kernel's command line has regInfo= for what cannot be read:$missing"
    else
        why="the kernel's command line has no regInfo=PATH"
    fi
    echo "$why, so that Nix does not know this system's own store paths and would collect them as garbage;" \
        "add regInfo=CLOSURE-INFO/registration, where CLOSURE-INFO is" \
        "services.castore-fs.virtiofs.<name>.registration of the host" >&2
    exit 1
fi
