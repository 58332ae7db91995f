# In a sandbox, from inputs that are only below; the result refers to them.
. "$SCENARIOS/nix-store/files/kit.sh"
dep=$(cat "$work/dep") tool=$(cat "$work/tool")
built=$(in_sandbox build built "read line <$(below "$tool"); read said <\$line; echo \$said $(below "$tool") >\$out")
[ "$(cat "$built")" = "dep $tool" ] || fail "it was built from something else: $(cat "$built")"
[ "$(nix-store --query --references "$built")" = "$tool" ] || fail "the reference was not found"
nix-store --query --requisites "$built" | grep -qx "$dep"
test -e "$upper/${built##*/}" || fail "the result is not in the machine's own store"
only_below "$dep" "$tool"
printf '%s\n' "$built" >"$work/built"
