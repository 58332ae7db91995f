# What has no signature or a wrong one, what has other contents, ends too early or is not there: with its reason,
# without a request too many. Once it is right it is read.
. "$SCENARIOS/binary-cache-store/files/kit.sh"
for name in unsigned forged altered cut gone; do
    cp "$(narinfo_of "$name")" "$work/$name.narinfo"
    cp "$(nar_of "$name")" "$work/$name.nar"
done
sed -i '/^Sig: /d' "$(narinfo_of unsigned)"
refused unsigned "no signature by a trusted key"
asked "GET /nix-cache-info" "$(to narinfo unsigned)"

# That of another path, by the same key.
signature=$(sed -n 's/^Sig: //p' "$(narinfo_of dep)")
sed -i "s#^Sig: .*#Sig: $signature#" "$(narinfo_of forged)"
refused forged "no signature by a trusted key"
asked "GET /nix-cache-info" "$(to narinfo forged)"

# One byte of its NAR is another.
at=$(($(stat -c %s "$(nar_of altered)") / 2))
printf X | dd of="$(nar_of altered)" bs=1 seek="$at" conv=notrunc status=none
refused altered "NarHash"
asked "GET /nix-cache-info" "$(to narinfo altered)" "$(to nar altered)"

truncate -s "-$(($(stat -c %s "$(nar_of cut)") / 2))" "$(nar_of cut)"
refused cut "end early"
asked "GET /nix-cache-info" "$(to narinfo cut)" "$(to nar cut)"

rm "$(nar_of gone)"
refused gone "not there"
asked "GET /nix-cache-info" "$(to narinfo gone)" "$(to nar gone)"

for name in unsigned forged altered cut gone; do
    cp "$work/$name.narinfo" "$(narinfo_of "$name")"
    cp "$work/$name.nar" "$(nar_of "$name")"
    within 30 reads "$name"
done
requests >/dev/null
