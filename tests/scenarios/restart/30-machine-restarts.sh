. "$SCENARIOS/kit.sh"
round=0
while [ "$round" -lt 10 ]; do
    systemctl restart castore-fs.service
    round=$((round + 1))
done
! test -e "$work/failures" || fail "reads failed over restarts: $(sort "$work/failures" | uniq -c; tail -n 5 "$work/reader.log")"
