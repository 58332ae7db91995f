# The collector above, with roots below; a path below is deleted in vain; equal files are made one.
. "$SCENARIOS/nix-store/files/kit.sh"
dep=$(cat "$work/dep") tool=$(cat "$work/tool") built=$(cat "$work/built")
roots=/nix/var/nix/gcroots
ln -sfn "$built" "$roots/built"
printf 'garbage\n' >"$work/garbage"
garbage=$(nix-store --add "$work/garbage")
nix-collect-garbage 2>&1 | tail -n 1
! test -e "$upper/${garbage##*/}" || fail "garbage was not collected"
test -e "$upper/${built##*/}" || fail "what a root names was collected"
only_below "$dep" "$tool"
# Of what is only below, too.
ln -sfn "$tool" "$roots/tool"
rm "$roots/built"
nix-collect-garbage 2>&1 | tail -n 1
! test -e "$upper/${built##*/}" || fail "what no root names was not collected"
$nix path-info -r "$tool"
rm "$roots/tool"
nix-store --delete "$tool"
nix-collect-garbage 2>&1 | tail -n 1
forget
$nix path-info -r "$tool"
[ "$(cat "$tool")" = "$dep" ] || fail "it was deleted below"
only_below "$dep" "$tool"
nix-store --optimise
nix-store --verify --check-contents
only_below "$dep" "$tool"
