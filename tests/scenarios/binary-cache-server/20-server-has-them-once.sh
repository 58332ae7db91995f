# Ten paths take the room of one, and are served by the next process of the service as by the last.
. "$SCENARIOS/kit.sh"
while read -r top; do
    castore-fs ls --store local:/var/lib/castore-fs "${top##*/}"
done <"$SHARED/tops"
kilobytes=$(du --summarize --block-size=1K /var/lib/castore-fs | cut -f 1)
[ "$kilobytes" -lt 60000 ] || fail "five closures of 30 MB take $kilobytes KB"
systemctl restart castore-fs.service
! journalctl --unit=castore-fs.service | grep -e writing-token -e reading-token || fail "a token is in the journal"
