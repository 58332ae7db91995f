# The first look-up waits for the whole NAR: a program that waits can be ended, others are not held up, the service
# is well, and the download continues without its reader.
. "$SCENARIOS/binary-cache-store/files/kit.sh"
requests >/dev/null
pid=$(systemctl show --property=MainPID --value castore-fs.service)
fault "stall 6000000 1 $(where stalled)"
cat "$(mounted stalled)" >/dev/null 2>&1 &
waiting=$!
within 30 grep -q "^$(to nar stalled)" "$control/requests"
sleep 1
kill -0 "$waiting" || fail "it did not wait"
for name in dep mid top; do timeout 10 cat "$(mounted "$name")" >/dev/null || fail "$name waits too"; done
kill "$waiting"
began=$(date +%s)
wait "$waiting" || true
[ $(($(date +%s) - began)) -le 5 ] || fail "it could not be ended"
fault
reads stalled
asked "$(to narinfo stalled)" "$(to nar stalled)"
[ "$(systemctl show --property=MainPID --value castore-fs.service)" = "$pid" ] || fail "the service was restarted"
stop_far
