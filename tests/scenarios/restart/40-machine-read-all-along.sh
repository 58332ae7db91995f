. "$SCENARIOS/kit.sh"
at=$(cat "$work/rounds")
within 60 sh -c '[ "$(cat '"$work/rounds"')" -gt '"$((at + 1))"' ]'
touch "$work/enough"
within 60 sh -c '! systemctl is-active scenario-reader.service'
! test -e "$work/failures" || fail "reads failed: $(sort "$work/failures" | uniq -c)"
same_tree "$work/tree" /srv/castore/tree
