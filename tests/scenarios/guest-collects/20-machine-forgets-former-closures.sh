# After the host has booted again, the roots of former closures are removed from the store, and no others.
. "$SCENARIOS/kit.sh"
host=local:$work/host
import_closure() {
    sh "$SCENARIOS/guest-collects/files/import-closure.sh" "$host" "$work/$1" "$work/shown/$2" "$work/records" \
        "$work/11111111111111111111111111111111-closure-info" "$work/22222222222222222222222222222222-closure-info"
}
roots() { castore-fs ls --store "$host"; }
has_root() { roots | grep -qx "$1"; }
# The machine's Nix store is gone with the step before.
info=$work/11111111111111111111111111111111-closure-info
program=$(sed 's#.*/##' "$info/store-paths")
cp "$work/program" "$work/$program"
echo "$work/$program" >"$info/store-paths"
# Another guest of the same store, whose service has not run yet, has one path more.
other=$work/22222222222222222222222222222222-closure-info
mkdir "$other"
printf 'other\n' >"$work/33333333333333333333333333333333-other"
echo "$work/33333333333333333333333333333333-other" >"$other/store-paths"
import_closure 22222222222222222222222222222222-closure-info other
castore-fs import --store "$host" --name mine "$work/program"
before=$(roots | wc -l)
# The boot.
rm "$work/shown/guest" "$work/shown/other"
import_closure 11111111111111111111111111111111-closure-info guest
! roots | grep -q -- -system || fail "the root of the former closure is still there"
! has_root 00000000000000000000000000000000-closure-info || fail "the former registration is still there"
[ "$(roots | wc -l)" = $((before - 2)) ] || fail "there are other roots: $(roots)"
for name in mine 33333333333333333333333333333333-other 22222222222222222222222222222222-closure-info \
    11111111111111111111111111111111-closure-info; do
    has_root "$name" || fail "$name is gone"
done
# A root that was there before an import stays: the program.
import_closure 22222222222222222222222222222222-closure-info other
rm "$work/shown/guest" "$work/shown/other"
sh "$SCENARIOS/guest-collects/files/import-closure.sh" "$host" "$other" "$work/shown/other" "$work/records" "$other"
has_root "$program" || fail "a root that was there before is gone"
! has_root 11111111111111111111111111111111-closure-info || fail "a guest that is no more has roots"
