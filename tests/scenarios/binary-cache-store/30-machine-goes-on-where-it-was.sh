# The connection ends in the middle of a NAR, and the server does: the download continues where it was.
. "$SCENARIOS/binary-cache-store/files/kit.sh"
requests >/dev/null
fault "break 4000000 2 $(where broken)"
reads broken
asked "$(to narinfo broken)" "$(to nar broken)" "$(to nar broken) bytes=4000000-" \
    "$(to nar broken) bytes=8000000-"

stop_far
start_far --property=Restart=always --property=RestartSec=100ms
fault "stop 6000000 1 $(where returns)"
reads returns
asked "$(to narinfo returns)" "$(to nar returns)" "$(to nar returns) bytes=6000000-"
stop_far
start_far
