. "$SCENARIOS/kit.sh"
. "$SCENARIOS/object-store/files/garage.sh"
