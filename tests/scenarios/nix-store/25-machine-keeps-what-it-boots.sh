# What is switched to is in the machine's own store, with all that it refers to: it runs while nothing is below, and
# the daemon itself starts from it.
. "$SCENARIOS/nix-store/files/kit.sh"
# The programs here are those of a distribution that has them outside of the store.
! test -e /run/current-system || exit 0
mkdir -p "$work/interpreter/bin"
cp /usr/bin/dash "$work/interpreter/bin/dash"
ln "$work/interpreter/bin/dash" "$work/interpreter/bin/linked"
ln -s dash "$work/interpreter/bin/sh"
chmod 755 "$work/interpreter/bin/dash"
start_far
interpreter=$($nix store add-path --store "$source" --name interpreter "$work/interpreter")
$nix copy --from "$source" --to "$cache" "$interpreter"
within 30 $nix path-info "$interpreter"
system=$(in_sandbox build system "echo '#!'$(below "$interpreter")/bin/sh >\$out; echo 'echo booted' >>\$out")
chmod 755 "$upper/${system##*/}"
systemctl reload castore-fs-nix-store.service
only_below "$interpreter"
[ "$("$system")" = booted ] || fail "it does not run"
nix-store --query --requisites "$system" >"$work/closure"

# keep PATH: as the check before a switch does it; the daemon that it asks is played by this machine's Nix.
keep() {
    mkdir -p "$work/bin"
    printf '#!/bin/sh\n[ "$NIX_REMOTE" != daemon ] || NIX_REMOTE="%s"\nexec /usr/bin/nix-store "$@"\n' "$NIX_REMOTE" \
        >"$work/bin/nix-store"
    chmod 755 "$work/bin/nix-store"
    PATH=$work/bin:$PATH sh "$SCENARIOS/below-nix-store/files/nix-store-overlay.sh" \
        keep "$lower" "$1" touch "$work/restarted"
}

# What has not come and cannot be read stops the switch, with the reason, and leaves nothing behind.
later=$(publish later 'echo later >$out')
within 30 $nix path-info "$later"
late_system=$(in_the_open build late-system "echo $(below "$later") >\$out")
kill_far
! keep "$late_system" 2>"$work/said" || fail "a switch to what cannot be read was let through"
grep -q "$later cannot be copied into the machine's own store" "$work/said" || fail "it says: $(cat "$work/said")"
! test -e "$upper/${later##*/}" || fail "it was copied in part"
! test -e "${upper%/*}/.castore-fs-kept" || fail "the copies stayed"
! test -e "$work/restarted"

# A program runs from what is only below, and continues; what was in its mind is not what counts afterwards.
"$interpreter/bin/dash" -c "until test -e $work/go; do sleep 0.1; done; echo done" >"$work/went-on" 2>&1 &
running=$!
within 10 sh -c "ls -l /proc/$running/exe | grep -q interpreter"
keep "$system"
test -e "$work/restarted" || fail "the Nix daemon would have kept its view"
rm "$work/restarted"
while read -r path; do
    [ -e "$upper/${path##*/}" ] || fail "$path is only below"
    diff -r --no-dereference "$upper/${path##*/}" "$lower/${path##*/}" 2>/dev/null || test "$path" = "$system" ||
        fail "$path is another"
done <"$work/closure"
details() { (cd "$1" && find . -printf '%P %y %m %U %G %T@ %l\n' | LC_ALL=C sort); }
details "$lower/${interpreter##*/}" >"$work/details-below"
details "$upper/${interpreter##*/}" | cmp - "$work/details-below" || fail "modes or times are others"
nix-store --verify-path "$interpreter"
! touch /nix/store/written 2>/dev/null || fail "the store is writable"
keep "$system" | cmp - /dev/null || fail "it was copied again"
! test -e "$work/restarted"

# The daemon's program is one of these: nothing of its start waits for the daemon, in the view of a running
# program's either.
drop_in=/run/systemd/system/castore-fs.service.d/program.conf
mkdir -p "${drop_in%/*}"
cat >"$drop_in" <<UNIT
[Service]
ExecStart=
ExecStart=$interpreter/bin/dash -c "test ! -e $interpreter/lib/none; exec /usr/bin/castore-fs daemon --config /etc/castore-fs/config.toml"
UNIT
systemctl daemon-reload
before=$(pid)
timeout 30 systemctl restart castore-fs.service || fail "it waits for itself"
within 10 another_than "$before"
rm "$drop_in"
systemctl daemon-reload
systemctl restart castore-fs.service
touch "$work/go"
wait "$running"
rm "$work/go"
grep -qx done "$work/went-on" || fail "the program that ran did not go on"

# As early in the boot: nothing is layered.
systemctl stop castore-fs-nix-store.service
keep "$system" | cmp - /dev/null || fail "a switch back is refused, or copies"
[ "$("$system")" = booted ] || fail "it does not run without what is below"
! keep "$late_system" 2>"$work/said" || fail "without the overlay a switch was let through"
grep -q "start castore-fs.service and castore-fs-nix-store.service" "$work/said" || fail "it says: $(cat "$work/said")"
systemctl start castore-fs-nix-store.service
[ "$("$system")" = booted ] || fail "it does not run above what is below"
# These go with the collector when no root names them, and are below again.
ln -sfn "$(cat "$work/built")" /nix/var/nix/gcroots/built
nix-collect-garbage >/dev/null 2>&1
rm /nix/var/nix/gcroots/built
systemctl reload castore-fs-nix-store.service
only_below "$interpreter"
start_far
