# What a configuration says, and what has to come of it:
#   rendered  the file expected/<rendered>.toml says the same as the daemon's file;
#             tests/nixos_config.rs has the daemon read each of these files
#   units     units, and for each the file expected/<…>.unit with what the module says in it
#   unit      lines that are in castore-fs.service's drop-in, and `notUnit`, lines that are not
#   fires     words of the one assertion that has to fail, each of them
#   check     anything else, of the evaluated configuration: a list of booleans
let
  inherit (builtins)
    elem
    hasAttr
    length
    match
    ;
in
{
  enabled-alone = {
    services = { };
    rendered = "enabled-alone";
    check = config: [
      (config.systemd.units."castore-fs.service".wantedBy == [ "multi-user.target" ])
      (!config.systemd.services.castore-fs.stopIfChanged)
      (length config.systemd.services.castore-fs.reloadTriggers == 1)
      (elem config.services.castore-fs.package config.systemd.packages)
      (elem config.services.castore-fs.package config.system.fsPackages)
      config.programs.fuse.enable
    ];
    # The package's unit says how it is started, as whom, and in what sandbox.
    notUnit = [
      "ExecStart="
      "User="
      "LoadCredential="
      "NoNewPrivileges="
    ];
  };

  one-mount = {
    services.mounts.tree = {
      path = "/srv/tree";
      listRoot = true;
    };
    rendered = "one-mount";
  };

  everything = {
    services = {
      stores = {
        disk.url = "local:/var/lib/castore-fs";
        upstream = {
          url = "grpc+https://castore.example.org";
          credential = "upstream";
        };
      };
      mounts.tree = {
        store = "upstream";
        path = "/srv/tree";
        listRoot = true;
        settings.uid = 1000;
      };
      virtiofs.guest = {
        store = "disk";
        root = "tree";
        socketGroup = "kvm";
        warmup = "learn";
      };
      settings = {
        metrics.address = "localhost:9740";
        listen.local = {
          store = "upstream";
          address = "unix:/run/castore-fs/castore.sock";
        };
        listen.network = {
          store = "disk";
          address = "[::]:7740";
        };
      };
      credentials.upstream = "/run/keys/upstream";
      openFirewall = true;
      extraFlags = [ "--some-flag" ];
    };
    rendered = "everything";
    units."castore-fs.service" = "everything";
    check = config: [
      (elem 7740 config.networking.firewall.allowedTCPPorts)
      (
        config.systemd.tmpfiles.settings."10-castore-fs"."/run/castore-fs-virtiofs/guest".d == {
          user = "root";
          group = "kvm";
          mode = "2755";
        }
      )
      (!(hasAttr "castore-fs-virtiofs-guest" config.systemd.sockets))
    ];
  };

  stores-of-every-kind = {
    services = {
      stores = {
        cached.url = "local:/var/cache/castore-fs";
        upstream = {
          url = "grpc+https://castore.example.org:8000";
          credential = "upstream-token";
          tls = {
            authorities = "/etc/castore-ca.pem";
            certificate = "client-certificate";
            key = "client-key";
          };
        };
        bucket = {
          url = "objectstore+s3://castore/main?region=garage&endpoint=https://s3.example.org";
          credential = "s3";
        };
        nearby.url = "grpc+unix:/run/nearby/castore.sock";
        either.mirrors = {
          of = [
            "nearby"
            "upstream"
          ];
          order = "fastest";
        };
        main.cache = {
          near = "cached";
          far = [
            "either"
            "bucket"
          ];
          size = "200GiB";
          keepFree = "10GiB";
          rootsMaxAge = "5m";
        };
        apps.filter = {
          store = "main";
          roots = [
            "app-*"
            "lib-?"
          ];
        };
        all.join = [
          "nearby"
          "apps"
        ];
      };
      mounts.tree = {
        store = "all";
        path = "/srv/tree";
      };
      credentials = {
        upstream-token = "/run/keys/token";
        client-certificate = "/run/keys/client.pem";
        client-key = "/run/keys/client.key";
        s3 = "/run/keys/s3";
      };
    };
    rendered = "stores-of-every-kind";
    units."castore-fs.service" = "stores-of-every-kind";
  };

  isolated-guests = {
    services = {
      stores = {
        disk.url = "local:/var/lib/castore-fs";
        upstream = {
          url = "grpc+https://castore.example.org";
          credential = "upstream";
        };
      };
      virtiofs = {
        near = {
          store = "disk";
          isolated = true;
          socketGroup = "kvm";
          listRoot = false;
        };
        far = {
          store = "upstream";
          isolated = true;
          socket = "/run/far.sock";
          root = "tree";
          tag = "castore";
          extraFlags = [ "--queues=2" ];
        };
      };
      credentials.upstream = "/run/keys/upstream";
    };
    rendered = "isolated-guests";
    units = {
      "castore-fs-virtiofs-near.service" = "isolated-near";
      "castore-fs-virtiofs-far.service" = "isolated-far";
    };
    check = config: [
      (
        config.systemd.sockets.castore-fs-virtiofs-near.socketConfig == {
          ListenStream = "/run/castore-fs-virtiofs/near/socket";
          SocketMode = "0660";
          SocketGroup = "kvm";
          RemoveOnStop = true;
        }
      )
      (config.systemd.sockets.castore-fs-virtiofs-far.socketConfig.ListenStream == "/run/far.sock")
    ];
  };

  a-guest-of-the-only-store = {
    services.virtiofs.guest.isolated = true;
    check = config: [
      (
        match ".* virtiofs --store local:/var/lib/castore-fs" config.systemd.services.castore-fs-virtiofs-guest.serviceConfig.ExecStart
        != null
      )
    ];
  };

  settings-alone = {
    services.settings = {
      stores.local.url = "memory:";
      mounts.tree = {
        store = "local";
        path = "/srv/tree";
      };
    };
    fires = null;
    check = config: [ (config.services.castore-fs.rendered.mounts.tree.path == "/srv/tree") ];
  };

  unprivileged = {
    services = {
      user = "castore-fs";
      mounts.tree.path = "/srv/tree";
    };
    unit = [
      "User=castore-fs"
      "Group=castore-fs"
      "AmbientCapabilities=CAP_SYS_ADMIN"
    ];
    notUnit = [ "NoNewPrivileges=" ];
    check = config: [
      config.users.users.castore-fs.isSystemUser
      (config.systemd.tmpfiles.settings."10-castore-fs"."/srv/tree" ? d)
    ];
  };

  unprivileged-with-a-cache = {
    services = {
      user = "castore-fs";
      stores = {
        cached.url = "local:/var/cache/castore-fs";
        state.url = "local:/var/lib/castore-fs/store";
        upstream.url = "grpc+unix:/run/upstream.sock";
        main.cache = {
          near = "cached";
          far = [ "upstream" ];
        };
      };
      mounts.tree = {
        store = "main";
        path = "/srv/tree";
      };
    };
    check =
      config:
      let
        folders = config.systemd.tmpfiles.settings."10-castore-fs";
      in
      [
        (folders."/var/cache/castore-fs".d.user == "castore-fs")
        # systemd makes it.
        (!(hasAttr "/var/lib/castore-fs/store" folders))
      ];
  };

  unprivileged-without-mounts = {
    services.user = "castore-fs";
    notUnit = [
      "AmbientCapabilities="
      "NoNewPrivileges="
    ];
  };

  by-helper = {
    services = {
      user = "castore-fs";
      mountWith = "fusermount";
      mounts.tree = {
        path = "/srv/tree";
        allowOther = false;
      };
    };
    unit = [
      "NoNewPrivileges=false"
      "SystemCallFilter="
    ];
    notUnit = [ "AmbientCapabilities=" ];
    check = config: [
      (elem "/run/wrappers" (map toString config.systemd.services.castore-fs.path))
      (config.systemd.tmpfiles.settings."10-castore-fs"."/srv/tree"."d!".user == "castore-fs")
    ];
  };

  below-nix-store = {
    services.mounts.store = {
      path = "/run/castore-fs/store";
      overNixStore = true;
    };
    rendered = "below-nix-store";
    unit = [
      "nix-store-overlay.sh stale /run/castore-fs/store"
      "nix-store-overlay.sh stopped /run/castore-fs/store"
      "--no-block try-restart castore-fs-nix-store.service"
    ];
    check =
      config:
      let
        unit = config.systemd.services.castore-fs-nix-store;
      in
      [
        (elem "castore-fs.service" unit.after)
        # Nothing that boots waits for it, or for the network, and it outlives the daemon's restarts.
        (elem "castore-fs.service" unit.wants)
        (unit.wantedBy == [ "multi-user.target" ])
        (!(elem "network-online.target" (unit.after ++ unit.wants)))
        (!unit.restartIfChanged)
        # For findmnt and umount.
        (elem "util-linux" (
          map (package: package.pname or package.name) config.systemd.services.castore-fs.path
        ))
      ];
  };

  fstab-without-the-daemon = {
    services.enable = false;
    also.fileSystems."/srv/tree" = {
      device = "local:/var/lib/castore-fs";
      fsType = "castore-fs";
      noCheck = true;
      options = [ "_netdev" ];
    };
    check = config: [
      (elem config.services.castore-fs.package config.system.fsPackages)
      config.programs.fuse.enable
      (!(hasAttr "castore-fs" config.systemd.services))
    ];
  };

  disabled = {
    services.enable = false;
    check = config: [
      (
        config.systemd.packages == [ ] || !(elem config.services.castore-fs.package config.systemd.packages)
      )
      (!(elem config.services.castore-fs.package config.system.fsPackages))
    ];
  };

  guest = {
    services.enable = false;
    services.guest = {
      enable = true;
      nixStore.enable = true;
    };
    check =
      config:
      let
        store = config.fileSystems."/nix/store";
        lower = config.fileSystems."/nix/.castore";
      in
      [
        (lower.device == "castore" && lower.fsType == "virtiofs" && lower.neededForBoot)
        (store.overlay.lowerdir == [ "/nix/.castore" ] && store.neededForBoot)
        (config.fileSystems."/nix/.castore-upper".fsType == "tmpfs")
        (elem "virtiofs" config.boot.initrd.availableKernelModules)
      ];
  };

  guest-on-disk = {
    services.enable = false;
    services.guest = {
      enable = true;
      tag = "tree";
      mountPoint = "/srv/tree";
    };
    check = config: [
      (config.fileSystems."/srv/tree".device == "tree")
      (!config.fileSystems."/srv/tree".neededForBoot)
      (!(hasAttr "/nix/.castore-upper" config.fileSystems))
    ];
  };

  refuses-a-mount-of-an-undeclared-store = {
    services.mounts.tree = {
      store = "mian";
      path = "/srv/tree";
    };
    fires = [
      ''"mian", which is not declared (there is "default")''
      "Declare `stores.mian`"
    ];
  };

  refuses-a-listener-of-an-undeclared-store = {
    services.settings.listen.network = {
      store = "other";
      address = "[::]:7740";
    };
    fires = [ "`settings.listen.network.store` names the store \"other\"" ];
  };

  refuses-a-guest-of-an-undeclared-store = {
    services.virtiofs.guest.store = "other";
    fires = [ "`virtiofs.guest.store` names the store \"other\"" ];
  };

  refuses-a-mount-that-does-not-say-which-store = {
    services.stores = {
      one.url = "memory:";
      two.url = "memory:";
    };
    services.mounts.tree.path = "/srv/tree";
    fires = [
      "`mounts.tree.store` is missing"
      "Set it to one of them"
    ];
  };

  refuses-a-store-that-is-nowhere = {
    services.stores.local = { };
    fires = [
      ''the store "local" does not say where it is''
      "Set `stores.local.url`"
    ];
  };

  refuses-two-mounts-on-one-path = {
    services.mounts = {
      a.path = "/srv/tree";
      b.path = "/srv//tree/";
    };
    fires = [ ''the mounts "a" and "b" are both on /srv/tree'' ];
  };

  refuses-a-mount-below-another = {
    services.mounts = {
      inner.path = "/srv/tree/inner";
      outer.path = "/srv/tree";
    };
    fires = [
      ''the mount "inner" on /srv/tree/inner is below the mount "outer"''
      "side by side"
    ];
  };

  allows-mounts-whose-names-begin-alike = {
    services.mounts = {
      a.path = "/srv/tree";
      b.path = "/srv/tree2";
    };
  };

  refuses-a-relative-path = {
    services.mounts.tree.path = "srv/tree";
    fires = [ ''"srv/tree", which is not an absolute one'' ];
  };

  refuses-to-hide-the-nix-store = {
    services.mounts.tree.path = "/nix/store/";
    fires = [
      "would hide /nix/store"
      "mounts.tree.overNixStore"
    ];
  };

  refuses-a-listed-root-below-the-nix-store = {
    services.mounts.tree = {
      path = "/run/castore-fs/store";
      overNixStore = true;
      listRoot = true;
    };
    fires = [ "Set `mounts.tree.listRoot = false`" ];
  };

  refuses-two-mounts-below-the-nix-store = {
    services.mounts = {
      a = {
        path = "/run/a";
        overNixStore = true;
      };
      b = {
        path = "/run/b";
        overNixStore = true;
      };
    };
    fires = [ "where one fits" ];
  };

  refuses-allow-other-without-privilege = {
    services = {
      user = "castore-fs";
      mountWith = "fusermount";
      mounts.tree.path = "/srv/tree";
    };
    fires = [ "programs.fuse.userAllowOther = true" ];
  };

  allows-allow-other-with-privilege = {
    services = {
      user = "castore-fs";
      mountWith = "fusermount";
      mounts.tree.path = "/srv/tree";
    };
    also.programs.fuse.userAllowOther = true;
  };

  refuses-an-open-firewall-with-nothing-behind-it = {
    services = {
      openFirewall = true;
      settings.listen.local.address = "unix:/run/castore-fs/castore.sock";
    };
    fires = [ "nothing listens on TCP" ];
  };

  refuses-a-store-of-two-kinds = {
    services.stores = {
      disk.url = "local:/var/lib/castore-fs";
      main = {
        url = "memory:";
        join = [ "disk" ];
      };
    };
    fires = [
      "is two things at once: `url` and `join`"
      "Leave one of them"
    ];
  };

  refuses-two-kinds-in-settings-as-well = {
    services.settings.stores = {
      disk.url = "local:/var/lib/castore-fs";
      main = {
        url = "memory:";
        mirrors.of = [ "disk" ];
      };
    };
    fires = [ "is two things at once: `url` and `mirrors`" ];
  };

  refuses-a-cache-of-an-undeclared-store = {
    services.stores = {
      cached.url = "local:/var/cache/castore-fs";
      main.cache = {
        near = "cached";
        far = [ "upstraem" ];
      };
    };
    fires = [
      "`stores.main.cache.far` names the store \"upstraem\", which is not declared"
      "Declare `stores.upstraem`"
    ];
  };

  refuses-mirrors-of-an-undeclared-store = {
    services.stores = {
      one.url = "memory:";
      main.mirrors.of = [
        "one"
        "two"
      ];
    };
    fires = [ "`stores.main.mirrors.of` names the store \"two\"" ];
  };

  refuses-a-filter-of-an-undeclared-store = {
    services.stores.main.filter = {
      store = "all";
      roots = [ "app-*" ];
    };
    fires = [ "`stores.main.filter.store` names the store \"all\"" ];
  };

  refuses-a-join-of-an-undeclared-store = {
    services.stores.main.join = [ "all" ];
    fires = [ "`stores.main.join` names the store \"all\"" ];
  };

  refuses-a-cache-that-is-kept-far-away = {
    services.stores = {
      upstream.url = "grpc+unix:/run/upstream.sock";
      near.url = "memory:";
      main.cache = {
        near = "near";
        far = [ "upstream" ];
      };
    };
    fires = [
      ''the cache "main" is to be kept in the store "near", which is in no folder''
      "stores.cached.url = \"local:"
    ];
  };

  refuses-two-caches-in-one-folder = {
    services.stores = {
      upstream.url = "grpc+unix:/run/upstream.sock";
      cached.url = "local:/var/cache/castore-fs";
      one.cache = {
        near = "cached";
        far = [ "upstream" ];
      };
      two.cache = {
        near = "cached";
        far = [ "upstream" ];
      };
    };
    fires = [
      ''the caches "one" and "two" are kept in one folder''
      "a near store of its own"
    ];
  };

  refuses-a-store-that-is-made-of-itself = {
    services.stores = {
      a.join = [ "b" ];
      b.mirrors.of = [
        "disk"
        "c"
      ];
      c.filter = {
        store = "a";
        roots = [ "*" ];
      };
      disk.url = "memory:";
    };
    fires = [
      ''the store "a" is made of itself: a of b of c of a''
      "out of the circle"
    ];
  };

  refuses-a-store-that-joins-itself = {
    services.stores.a.join = [ "a" ];
    fires = [ ''the store "a" is made of itself: a of a'' ];
  };

  refuses-a-token-in-the-clear = {
    services.stores.upstream = {
      url = "grpc+http://castore.example.org";
      credential = "upstream";
    };
    services.credentials.upstream = "/run/keys/upstream";
    fires = [
      "would travel in the clear"
      "grpc+https:"
    ];
  };

  refuses-a-credential-for-a-folder = {
    services.stores.disk = {
      url = "local:/var/lib/castore-fs";
      credential = "disk";
    };
    services.credentials.disk = "/run/keys/disk";
    fires = [ "behind no server that asks for a credential" ];
  };

  refuses-certificates-without-tls = {
    services.stores.upstream = {
      url = "grpc+unix:/run/upstream.sock";
      tls.authorities = "/etc/ca.pem";
    };
    fires = [ "`stores.upstream.tls` is for servers that are reached by `grpc+https:`" ];
  };

  refuses-a-certificate-without-its-key = {
    services.stores.upstream = {
      url = "grpc+https://castore.example.org";
      tls.certificate = "client";
    };
    services.credentials.client = "/run/keys/client.pem";
    fires = [ "Set both `stores.upstream.tls.certificate` and `stores.upstream.tls.key`" ];
  };

  refuses-a-certificate-that-is-not-declared = {
    services.stores.upstream = {
      url = "grpc+https://castore.example.org";
      tls.certificate = "client";
      tls.key = "key";
    };
    services.credentials.key = "/run/keys/client.key";
    fires = [ "`stores.upstream.tls.certificate` names the credential \"client\"" ];
  };

  refuses-a-key-in-the-nix-store = {
    services.settings.stores.upstream = {
      url = "grpc+https://castore.example.org";
      tls-client-key-path = "${builtins.storeDir}/00000000000000000000000000000000-key.pem";
    };
    fires = [ "where everybody can read it" ];
  };

  allows-authorities-in-the-nix-store = {
    services.settings.stores.upstream.url =
      "grpc+https://castore.example.org?token-file=/run/token&tls-ca-cert-path=${builtins.storeDir}/00000000000000000000000000000000-ca.pem";
  };

  refuses-an-isolated-guest-of-a-composed-store = {
    services.stores = {
      disk.url = "memory:";
      main.join = [ "disk" ];
    };
    services.virtiofs.guest = {
      store = "main";
      isolated = true;
    };
    fires = [
      "is made of others, which is the daemon's work"
      "Leave out `virtiofs.guest.isolated`"
    ];
  };

  refuses-a-group-for-a-socket-elsewhere = {
    services.virtiofs.guest = {
      socket = "/run/guest.sock";
      socketGroup = "kvm";
    };
    fires = [ "Leave out `virtiofs.guest.socket`" ];
  };

  refuses-flags-that-nobody-reads = {
    services.virtiofs.guest.extraFlags = [ "--xattr" ];
    fires = [ "Say it in `virtiofs.guest.settings`" ];
  };

  refuses-settings-that-nobody-reads = {
    services.virtiofs.guest = {
      isolated = true;
      settings.xattr = true;
    };
    fires = [ "Say it in `virtiofs.guest.extraFlags`" ];
  };

  refuses-an-isolated-guest-that-learns = {
    services.virtiofs.guest = {
      isolated = true;
      warmup = "learn";
    };
    fires = [ "Leave out `virtiofs.guest.warmup`" ];
  };

  refuses-a-credential-that-is-not-declared = {
    services.stores.upstream = {
      url = "grpc+https://castore.example.org";
      credential = "upstream";
    };
    fires = [
      "`stores.upstream.credential` names the credential \"upstream\""
      "Set `credentials.upstream`"
    ];
  };

  refuses-a-token-in-the-nix-store = {
    services.stores.upstream = {
      url = "grpc+https://castore.example.org?token-file=${builtins.storeDir}/00000000000000000000000000000000-token";
    };
    fires = [ "where everybody can read it" ];
  };

  refuses-a-credential-from-the-nix-store = {
    services.credentials.upstream = "${builtins.storeDir}/00000000000000000000000000000000-token";
    throws = config: config.services.castore-fs.credentials;
  };

  refuses-a-guest-mount-in-the-way = {
    services.enable = false;
    services.guest = {
      enable = true;
      nixStore.enable = true;
      mountPoint = "/nix/store";
    };
    fires = [ "it has to be elsewhere" ];
  };
}
