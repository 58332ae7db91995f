# The binary cache is killed while Nix is at each of these. What came goes on; what did not fails, and is not
# absent.
. "$SCENARIOS/nix-store/files/kit.sh"
dep=$(cat "$work/dep") tool=$(cat "$work/tool") late=$(cat "$work/late")
without() {
    start_far
    { sleep 0.1 && systemctl kill --signal=SIGKILL far.service; } &
    "$@" || fail "without the server: $*"
    wait
}
without nix-store --query --requisites "$tool"
without $nix store verify --no-trust -r "$tool"
without $nix why-depends "$tool" "$dep"
built=$(without in_sandbox build built-without "read line <$(below "$tool"); echo \$line >\$out")
[ "$(cat "$built")" = "$dep" ] || fail "it was built from something else"
printf 'added\n' >"$work/added"
added=$(without nix-store --add "$work/added")
without nix-store --optimise
without nix-store --verify
without nix-collect-garbage
! test -e "$upper/${added##*/}" || fail "garbage was not collected"
# Known, and its contents have not come: valid still, and not to be read.
# The daemon asks again 10 s after it found nothing there.
start_far
within 30 $nix path-info "$late"
kill_far
$nix path-info "$late"
status=0
cat "$late" 2>"$work/said" || status=$?
[ "$status" != 0 ] || fail "it reads what is not there"
! grep -q "No such file" "$work/said" || fail "it is absent: $(cat "$work/said")"
# Nor does Nix take it for gone.
! nix-store --verify || fail "it was verified"
$nix path-info "$late"
! in_sandbox build built-late "read line <$(below "$late"); echo \$line >\$out" ||
    fail "it was built from what is not there"
start_far
within 60 cat "$late"
built=$(in_sandbox build built-late "read line <$(below "$late"); echo \$line >\$out")
[ "$(cat "$built")" = late ] || fail "it was built from something else"
only_below "$late"
