# It stands still most of the time.
. "$SCENARIOS/nix-unreachable/files/kit.sh"
while sleep 0.1; do
    systemctl kill --signal=SIGSTOP far.service
    sleep 0.9
    systemctl kill --signal=SIGCONT far.service
done &
slow=$!
works slow
kill "$slow"
wait "$slow" || true
systemctl kill --signal=SIGSTOP far.service
