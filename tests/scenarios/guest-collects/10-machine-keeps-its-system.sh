# A machine whose Nix store is all below an overlay, as `services.castore-fs.guest.nixStore` makes it: once
# the registration is loaded that the host passes on, its Nix knows its system, and collecting deletes none
# of it. The machine is a mount namespace here; on NixOS a virtual machine boots in tests/nixos.
. "$SCENARIOS/kit.sh"
export NIX_REMOTE=local NIX_CONFIG='build-users-group =
sandbox = false
substituters ='
command -v nix-store >/dev/null || fail "there is no nix-store"
host=local:$work/host

# On the host: a system of two paths, of which one refers to the other, and its registration.
test -d /nix/store || had_none=yes
mkdir -p "$work/guest/lower" "$work/guest/layers"
printf 'program\n' >"$work/program"
program=$(nix-store --add "$work/program")
system=$(nix-build --no-out-link -E "derivation {
    name = \"system\"; system = builtins.currentSystem; builder = \"/bin/sh\";
    args = [ \"-c\" \"echo ${program} > \$out\" ]; program = builtins.storePath \"$program\";
}")
nix-store --query --requisites "$system" >"$work/closure"
grep -qx "$program" "$work/closure" || fail "the system does not refer to its program"
info=$work/00000000000000000000000000000000-closure-info
mkdir "$info"
xargs nix-store --dump-db <"$work/closure" >"$info/registration"
cp "$work/closure" "$info/store-paths"
mkdir "$work/shown" "$work/records"
import_closure() {
    sh "$SCENARIOS/guest-collects/files/import-closure.sh" "$host" "$1" "$work/shown/guest" "$work/records"
}
has_root() { castore-fs ls --store "$host" | grep -qx "${1##*/}"; }
# A root that is there before the import is not the closure's to remove, though the closure has it too.
castore-fs import --store "$host" "$program"
import_closure "$info"
# What the guest is shown is its closure and the registration, and after a switch the other closure too.
{ cat "$work/closure" && echo "$info"; } | sort >"$work/expected"
cmp "$work/expected" "$work/shown/guest" || fail "the guest is shown $(cat "$work/shown/guest")"
other=$work/11111111111111111111111111111111-closure-info
mkdir "$other"
printf '%s\n' "$program" >"$other/store-paths"
import_closure "$other"
has_root "$system" || fail "a root is gone that the running guest is shown"
{ cat "$work/expected" && echo "$other"; } | sort >"$work/expected.other"
cmp "$work/expected.other" "$work/shown/guest" || fail "after a switch the guest is shown $(cat "$work/shown/guest")"
castore-fs mount --store "$host" --allow-other "$work/guest/lower" &
within 30 test -e "$work/guest/lower/${system##*/}"

cat >"$work/guest/inside.sh" <<GUEST
set -eu
. "\$SCENARIOS/kit.sh"
mount -t tmpfs tmpfs $work/guest/layers
mkdir $work/guest/layers/upper $work/guest/layers/work
mount -t tmpfs tmpfs /nix
mkdir -p /nix/store /nix/var/nix/gcroots
mount -t overlay store -o lowerdir=$work/guest/lower,upperdir=$work/guest/layers/upper,workdir=$work/guest/layers/work /nix/store
ln -s $system /nix/var/nix/gcroots/booted-system
# nixpkgs' test machines add a registration that is not served here.
echo init=$system/init regInfo=/nix/store/00000000000000000000000000000000-closure-info/registration regInfo=/nowhere >$work/cmdline
CMDLINE=$work/cmdline sh "\$SCENARIOS/guest-collects/files/load-registration.sh"
# What it adds itself is garbage, and its system is not.
printf 'junk\n' >$work/junk
junk=\$(nix-store --add $work/junk)
nix-store --verify-path $system $program
nix-collect-garbage
! test -e "\$junk" || fail "the junk was not collected"
[ "\$(cat $system)" = $program ] || fail "the system is gone"
[ "\$(cat $program)" = program ] || fail "a part of the system is gone"
# Nothing of the closure is hidden; the registration itself, which no path refers to, may be.
for path in \$(cat $work/closure); do
    ! test -c "$work/guest/layers/upper/\${path##*/}" || fail "\$path is hidden for good"
done
# Without the parameter it fails, and says what to add.
echo quiet >$work/cmdline
! CMDLINE=$work/cmdline sh "\$SCENARIOS/guest-collects/files/load-registration.sh" 2>$work/said
grep -q 'add regInfo=' $work/said || fail "it does not say what to do"
echo regInfo=/nowhere >$work/cmdline
! CMDLINE=$work/cmdline sh "\$SCENARIOS/guest-collects/files/load-registration.sh" 2>$work/said
grep -q 'cannot be read: /nowhere' $work/said || fail "it does not say what is missing"
GUEST
status=0
mkdir -p /nix
unshare --mount --propagation private sh -eu "$work/guest/inside.sh" || status=$?
umount "$work/guest/lower"
test -z "${had_none-}" || rm -rf /nix
[ "$status" = 0 ] || fail "in the guest"
