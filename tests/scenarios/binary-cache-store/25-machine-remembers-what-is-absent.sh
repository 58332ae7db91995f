# A path that the binary cache has not is asked for once, over restarts too; --refresh has it asked for again. Names
# that cannot be store paths are asked for never.
. "$SCENARIOS/binary-cache-store/files/kit.sh"
absent=$(mounted absent)
request=$(to narinfo absent)
mv "$(narinfo_of absent)" "$work/absent.narinfo"
for name in .links x nix-support eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee-name; do
    ! test -e "/srv/written/$name" || fail "there is $name"
done
asked_nothing
is_absent() {
    ! cat "$absent" 2>"$work/said" || fail "it is there"
    grep -q "No such file" "$work/said" || fail "it is not absent: $(cat "$work/said")"
}
is_absent
asked "$request"
forget
is_absent
asked_nothing
systemctl stop castore-fs.service
systemctl start castore-fs.service
is_absent
asked_nothing
cp "$work/absent.narinfo" "$(narinfo_of absent)"
forget
is_absent
asked_nothing
castore-fs ls --refresh --store "nix+$url?trusted-public-keys=$public_key&into=/var/lib/castore-fs/unpacked" "${absent##*/}"
within 30 reads absent
requests >/dev/null
