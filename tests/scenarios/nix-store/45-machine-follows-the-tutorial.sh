# The commands of docs/nixos.md, as they are there (tests/documentation.rs compares them).
. "$SCENARIOS/nix-store/files/kit.sh"
mkdir -p "$work/hello/bin" "$work/tutorial"
printf '#!/bin/sh\necho Hello, world!\n' >"$work/hello/bin/hello"
chmod 755 "$work/hello/bin/hello"
start_far
hello=$($nix store add-path --store "$source" --name hello "$work/hello")
$nix copy --from "$source" --to "$cache" "$hello"
# The daemon asks again 10 s after it found nothing there.
within 30 $nix path-info "$hello"
cd "$work/tutorial"
export hello
in_sandbox sh -eu "$SCENARIOS/nix-store/files/tutorial.sh" >"$work/said"
[ "$(grep -cx 'Hello, world!' "$work/said")" = 2 ] || fail "the program and the build said: $(cat "$work/said")"
! grep -qE '^[0-9a-z]{32}-hello$' "$work/said" || fail "hello was copied: $(cat "$work/said")"
grep -qE '^[0-9a-z]{32}-greeting$' "$work/said" || fail "the result is in another store: $(cat "$work/said")"
[ -z "$(find "$upper" -maxdepth 1 -name '*-greeting')" ] || fail "the result was not collected"
kill_far
in_sandbox sh -eu "$SCENARIOS/nix-store/files/tutorial-offline.sh" >"$work/said"
grep -qx 'Hello, world!' "$work/said" || fail "it does not run without a network: $(cat "$work/said")"
only_below "$hello"
