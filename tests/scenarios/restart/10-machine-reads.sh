# Readers that never stop, and count what fails: one that walks, one that holds a file open, one
# whose working directory is on the mount.
. "$SCENARIOS/kit.sh"
make_tree "$work/tree"
castore-fs import "$work/tree"
cat >"$work/reader" <<'EOF'
. "$SCENARIOS/kit.sh"
cd /srv/castore/tree/deep
exec 3<../large
rounds=0
while ! test -e "$work/enough"; do
    same_tree "$work/tree" /srv/castore/tree >>"$work/reader.log" 2>&1 || echo walk >>"$work/failures"
    cmp -s er/and/deeper/file "$work/tree/deep/er/and/deeper/file" || echo cwd >>"$work/failures"
    head -c 4096 <&3 >/dev/null || echo open >>"$work/failures"
    # So that the pages have to be asked for again.
    forget
    rounds=$((rounds + 1))
    echo "$rounds" >"$work/rounds"
done
EOF
systemd-run --unit=scenario-reader --setenv=SCENARIOS="$SCENARIOS" --setenv=PATH="$PATH" sh -u "$work/reader"
within 30 test -s "$work/rounds"
