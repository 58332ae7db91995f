# A look-up brings the path; what it refers to follows. Each file is asked for once, over restarts too.
. "$SCENARIOS/binary-cache-store/files/kit.sh"
reads top
got() {
    [ "$(wc -l <"$control/requests")" -ge 7 ]
}
within 60 got
asked "GET /nix-cache-info" "$(to narinfo dep)" "$(to narinfo mid)" "$(to narinfo top)" \
    "$(to nar dep)" "$(to nar mid)" "$(to nar top)"
for name in dep mid top; do reads "$name"; done
asked_nothing
systemctl stop castore-fs.service
forget
systemctl start castore-fs.service
for name in dep mid top; do reads "$name"; done
asked_nothing
stop_far
forget
for name in dep mid top; do reads "$name"; done
start_far
