# Every object on each of the three; a bucket, and the key that the client has.
. "$SCENARIOS/kit.sh"
for peer in storage2 storage3; do
    within 60 garage node connect "$(cat "$SHARED/$peer")@$peer:3901"
done
for node in storage1 storage2 storage3; do
    within 60 garage layout assign "$(cat "$SHARED/$node")" --zone "$node" --capacity 1G
done
within 60 garage layout apply --version 1
secrets=$SCENARIOS/object-store/files/s3
key=$(sed -n 's/^aws_access_key_id = //p' "$secrets")
secret=$(sed -n 's/^aws_secret_access_key = //p' "$secrets")
within 60 garage key import --yes "$key" "$secret"
within 60 garage bucket create castore
within 60 garage bucket allow --read --write --key "$key" castore
