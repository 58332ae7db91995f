systemctl stop castore-fs.service
