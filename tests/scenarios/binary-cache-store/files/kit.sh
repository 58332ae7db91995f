# For the steps: a binary cache that Nix has written, behind a server that notes what is asked of it.
. "$SCENARIOS/kit.sh"
. "$SCENARIOS/nix.sh"

url=http://127.0.0.1:5008
written=$work/written
control=$work/control

# start_far [PROPERTY…]: the server, which can be stopped.
start_far() {
    rm -f "$control/requests"
    systemd-run --quiet --unit=far --collect "$@" python3 "$SCENARIOS/binary-cache-store/files/between.py" \
        5008 "$written" "$control"
    within 30 test -e "$control/requests"
}
stop_far() {
    systemctl stop far.service 2>/dev/null || true
    within 30 sh -c '! systemctl is-active far.service'
}

# write COMPRESSION PATH: with the paths that it refers to and that are not there.
write() {
    $nix copy --from "$source" --to "file://$written?compression=$1&secret-key=$work/secret-key" "$2"
}

# pad DOUBLINGS: for a builder, 16 bytes that are doubled so often, in $x.
pad() { printf 'x=0123456789abcde; i=0; while [ $i -lt %s ]; do x=$x$x; i=$((i + 1)); done; ' "$1"; }

# publish NAME TEXT COMPRESSION: a path whose file has this text behind the padding.
publish() {
    published=$(build_elsewhere -E "$(made "$1" "$2")")
    write "$3" "$published"
    printf '%s\n' "$published" >"$work/$1"
}

# path_of NAME
path_of() { cat "$work/$1"; }
# narinfo_of NAME, nar_of NAME: their files.
narinfo_of() {
    name=$(path_of "$1")
    name=${name#/nix/store/}
    printf '%s\n' "$written/${name%%-*}.narinfo"
}
nar_of() { printf '%s\n' "$written/$(sed -n 's/^URL: //p' "$(narinfo_of "$1")")"; }
# mounted NAME: where it is below the mount.
mounted() {
    name=$(path_of "$1")
    printf '%s\n' "/srv/written/${name##*/}"
}

# requests: those since the last time, sorted.
requests() {
    mv "$control/requests" "$control/seen"
    touch "$control/requests"
    LC_ALL=C sort "$control/seen"
}
# asked REQUEST…: these were made since the last time, and no others.
asked() {
    requests >"$control/made"
    for request; do printf '%s\n' "$request"; done | LC_ALL=C sort | diff - "$control/made" >&2 ||
        fail "other requests were made (>) than expected (<)"
}
asked_nothing() { asked; }
# to WHAT NAME: the request for the narinfo or the NAR of a path.
to() { printf 'GET /%s\n' "$("$1_of" "$2" | sed "s#^$written/##")"; }

# reads NAME: below the mount it is what was built.
reads() { timeout 120 cmp "$(built "$(path_of "$1")")" "$(mounted "$1")"; }

# refused NAME WHY: reading it fails, with the reason in the journal; it is not taken for absent.
refused() {
    # The errors of one mount are logged once a minute by each process.
    systemctl restart castore-fs.service
    status=0
    timeout 120 cat "$(mounted "$1")" >/dev/null 2>"$work/said" || status=$?
    [ "$status" = 1 ] || fail "reading $1 gave $status"
    ! grep -q "No such file" "$work/said" || fail "$1 is absent: $(cat "$work/said")"
    within 10 journal_has "$(mounted "$1")" "$2"
}
# journal_has PATH WHY
journal_has() {
    journalctl --unit=castore-fs.service --output=json | grep -F "${1##*/}" | grep -q "$2"
}

# fault [LINE]: what between.py reads.
fault() { printf '%s' "${1+$1
}" >"$control/faults"; }
# where NAME: of its NAR, as a fault names it.
where() { printf '/%s\n' "$(nar_of "$1" | sed "s#^$written/##")"; }
