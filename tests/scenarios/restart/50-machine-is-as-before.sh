rm -r /run/systemd/system/castore-fs.service.d/zz-upgraded.conf
systemctl daemon-reload
systemctl restart castore-fs.service
