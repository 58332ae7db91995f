# Configurations, and their expected results:
#   rendered  the file expected/<rendered>.toml says the same as the daemon's file;
#             tests/nixos_config.rs has the daemon read each of these files
#   units     units, and for each the file expected/<…>.unit with what the module says in it
#   unit      lines that are in castore-fs.service's drop-in, and `notUnit`, lines that are not
#   fires     words of the one assertion that has to fail, each of them
#   refused   words of the daemon, which refuses the file that is written; no assertion fails
#   verified  systemd-analyze verifies the units: they are in expected/units/<case>
#   check     anything else, of the evaluated configuration: a list of booleans
let
  inherit (builtins)
    elem
    hasAttr
    length
    match
    ;
  # Whether `words` are in `text`. (A pattern may refer to no store path.)
  has = words: text: length (builtins.split (builtins.unsafeDiscardStringContext words) text) > 1;
in
{
  enabled-alone = {
    verified = true;
    services = { };
    rendered = "enabled-alone";
    check = config: [
      (config.systemd.units."castore-fs.service".wantedBy == [ "multi-user.target" ])
      (!config.systemd.services.castore-fs.stopIfChanged)
      (length config.systemd.services.castore-fs.reloadTriggers == 1)
      (elem config.services.castore-fs.package config.systemd.packages)
      (elem config.services.castore-fs.package config.system.fsPackages)
      # Two setuid helpers that nothing here calls.
      (!config.programs.fuse.enable)
    ];
    # The package's unit defines the command, the user and the sandbox.
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
    verified = true;
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
        mountOptions = [ "noexec" ];
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
          type = "d";
          user = "root";
          group = "kvm";
          mode = "2755";
          age = "-";
          argument = "";
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

  a-binary-cache-images-and-rights = {
    services = {
      stores = {
        cached.url = "local:/var/cache/castore-fs";
        nixos = {
          credential = "cache-token";
          binaryCache = {
            url = [
              "https://cache.example.org"
              "https://cache.nixos.org?priority=50"
            ];
            into = "cached";
            trustedPublicKeys = [ "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" ];
            closure = "narinfos";
            netrc = "netrc";
            size = "20GiB";
            keepFree = "10GiB";
          };
        };
        disk.url = "local:/var/lib/castore-fs";
      };
      settings = {
        mounts.tree = {
          store = "disk";
          path = "/srv/tree";
          images = true;
          threads = 2;
        };
        images.system.roots = [
          "kernel"
          "modules"
        ];
        listen.network = {
          store = "disk";
          address = "[::]:7740";
          writable = true;
          tls-cert-path = "/etc/castore-cert.pem";
          tls-key-path = "/run/keys/castore-key.pem";
          token-file = "/run/keys/castore-tokens";
        };
        listen.local = {
          store = "disk";
          address = "unix:/run/castore-fs/castore.sock";
          writable = true;
          allow-replace = true;
        };
        drain = "5s";
      };
      credentials = {
        cache-token = "/run/keys/cache-token";
        netrc = "/run/keys/netrc";
      };
    };
    rendered = "binary-cache";
    unit = [
      "LoadCredential=cache-token:/run/keys/cache-token"
      "LoadCredential=netrc:/run/keys/netrc"
    ];
  };

  refuses-an-option-of-another-type = {
    services.settings.listen.network = {
      address = "[::]:7740";
      allow-replace = "yes";
    };
    throws = config: config.services.castore-fs.settings.listen;
  };

  refuses-a-binary-cache-without-a-place = {
    services.stores.nixos.binaryCache = {
      url = "https://cache.nixos.org";
      into = "cached";
    };
    refused = ''stores.nixos.binary-cache.into: there is no store "cached"'';
  };

  refuses-a-netrc-that-is-not-declared = {
    services.stores = {
      cached.url = "local:/var/cache/castore-fs";
      nixos.binaryCache = {
        url = "https://cache.nixos.org";
        into = "cached";
        netrc = "netrc";
      };
    };
    fires = [ "`stores.nixos.binaryCache.netrc` names the credential \"netrc\"" ];
  };

  refuses-a-netrc-in-the-nix-store = {
    services.settings.stores = {
      cached.url = "local:/var/cache/castore-fs";
      nixos.binary-cache = {
        url = "https://cache.nixos.org";
        into = "cached";
        netrc-file = "${builtins.storeDir}/00000000000000000000000000000000-netrc";
      };
    };
    fires = [ "where every user can read it" ];
  };

  isolated-guests = {
    verified = true;
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
      # A switch would end the guests.
      (!config.systemd.services.castore-fs-virtiofs-near.restartIfChanged)
      (!config.systemd.services.castore-fs-virtiofs-far.restartIfChanged)
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
    verified = true;
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
    check =
      config:
      let
        unit = config.systemd.services.castore-fs;
      in
      [
        config.programs.fuse.enable
        (elem "/run/wrappers" (map toString unit.path))
        # At the first switch as at boot, and while nothing is mounted there.
        (has "/proc/self/mountinfo .. install -d --owner castore-fs --group castore-fs /srv/tree" unit.serviceConfig.ExecStartPre)
        (!(hasAttr "/srv/tree" (config.systemd.tmpfiles.settings."10-castore-fs" or { })))
        # A mount more finds its folder.
        (length unit.restartTriggers == 1 && unit.reloadTriggers == [ ])
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
        (match ".*nix-store-overlay.sh refresh /run/castore-fs/store" unit.serviceConfig.ExecReload != null)
        (!(hasAttr "ExecStartPost" config.systemd.services.nix-gc.serviceConfig))
        # For findmnt and umount.
        (elem "util-linux" (
          map (package: package.pname or package.name) config.systemd.services.castore-fs.path
        ))
      ];
  };

  below-nix-store-with-a-collector = {
    verified = true;
    services.mounts.store = {
      path = "/run/castore-fs/store";
      overNixStore = true;
    };
    also.nix.gc.automatic = true;
    check = config: [
      # What the collector removed is looked up below again.
      (
        match ".*--no-block reload castore-fs-nix-store.service" config.systemd.services.nix-gc.serviceConfig.ExecStartPost
        != null
      )
    ];
  };

  nix-store = {
    verified = true;
    services.nixStore = {
      enable = true;
      size = "50GiB";
    };
    rendered = "nix-store";
    also.nix.gc.automatic = true;
    check =
      config:
      let
        daemon = config.systemd.services.nix-daemon;
        socket = config.systemd.sockets.castore-fs-nix-store;
      in
      [
        # Nix compares the folders with the kernel's table of mounts; systemd reads %% as %.
        (
          match (
            "local-overlay://[?]lower-store=unix%%3A%%2F%%2F%%2Frun%%2Fcastore-fs-nix-store[.]sock%%3Freal%%3D%%2Frun%%2Fcastore-fs-nix-store-lower"
            + "&remount-hook=.*&upper-layer=%%2Frun%%2Fcastore-fs-nix-store%%2Fstore"
          ) daemon.environment.NIX_REMOTE != null
        )
        (config.systemd.globalEnvironment.NIX_REMOTE == "daemon")
        (config.environment.variables.NIX_REMOTE == "daemon")
        (elem "local-overlay-store" config.nix.settings.experimental-features)
        (socket.listenStreams == [ "/run/castore-fs-nix-store.sock" ])
        (socket.socketConfig.Service == "castore-fs.service")
        (socket.socketConfig.SocketMode == "0600")
        # It boots without a network.
        (!(elem "network-online.target" config.systemd.services.castore-fs-nix-store.after))
      ];
  };

  nix-store-of-another-store = {
    services = {
      stores = {
        cached.url = "local:/var/cache/castore-fs";
        upstream.url = "grpc+https://castore.example.org";
        main.cache = {
          near = "cached";
          far = [ "upstream" ];
        };
      };
      nixStore = {
        enable = true;
        store = "main";
      };
    };
    check = config: [
      (config.services.castore-fs.rendered.mounts.nix-store.store == "main")
      (config.services.castore-fs.rendered.listen.nix-store.store == "main")
      (!(hasAttr "nix-store" config.services.castore-fs.rendered.stores))
    ];
  };

  refuses-a-nix-store-that-keeps-nothing = {
    services = {
      stores.main.url = "grpc+https://castore.example.org";
      nixStore = {
        enable = true;
        store = "main";
      };
    };
    refused = "put a cache in front of it";
  };

  collects-garbage = {
    verified = true;
    services = {
      stores = {
        disk.url = "local:/srv/castore";
        upstream.url = "grpc+unix:/run/upstream.sock";
      };
      gc = {
        automatic = true;
        dates = "daily";
        grace = "1d";
      };
    };
    check =
      config:
      let
        unit = config.systemd.services.castore-fs-gc;
      in
      [
        (length unit.serviceConfig.ExecStart == 1)
        (
          match ".* gc --store local:/srv/castore --grace 1d" (builtins.head unit.serviceConfig.ExecStart)
          != null
        )
        (config.systemd.timers.castore-fs-gc.timerConfig.OnCalendar == "daily")
        (config.systemd.timers.castore-fs-gc.wantedBy == [ "timers.target" ])
      ];
  };

  collects-garbage-of-the-daemons-own-store = {
    services.gc.automatic = true;
    check = config: [
      (
        match ".*--store local:/var/lib/castore-fs --grace 1h" (
          builtins.head config.systemd.services.castore-fs-gc.serviceConfig.ExecStart
        ) != null
      )
    ];
  };

  refuses-to-collect-in-a-store-far-away = {
    services = {
      stores.upstream.url = "grpc+unix:/run/upstream.sock";
      gc = {
        automatic = true;
        stores = [ "upstream" ];
      };
    };
    fires = [ "`gc.stores` names \"upstream\"" ];
  };

  a-guest-with-its-closure = {
    verified = true;
    services.virtiofs.guest.closure = [
      "${builtins.storeDir}/00000000000000000000000000000000-nixos-system"
    ];
    rendered = "guest-closure";
    check =
      config:
      let
        unit = config.systemd.services.castore-fs-closure-guest;
        registration = toString config.services.castore-fs.virtiofs.guest.registration;
      in
      [
        (has "local:/var/lib/castore-fs ${registration} /run/castore-fs-closures/guest" unit.script)
        (unit.after == [ "castore-fs.service" ])
      ];
  };

  refuses-a-closure-for-an-isolated-guest = {
    services.virtiofs.guest = {
      closure = [ "${builtins.storeDir}/00000000000000000000000000000000-nixos-system" ];
      isolated = true;
    };
    fires = [ "leave out `virtiofs.guest.isolated`" ];
  };

  refuses-an-isolated-guest-of-an-undeclared-store = {
    services.virtiofs.guest = {
      store = "other";
      isolated = true;
    };
    fires = [ "`virtiofs.guest.store` names the store \"other\"" ];
  };

  refuses-an-option-that-there-is-not = {
    services.mounts.tree = {
      path = "/srv/tree";
      listRoots = true;
    };
    throws = config: config.services.castore-fs.mounts.tree;
  };

  # docs/nixos.md has this entry; an overlay on top of such a mount, and the daemon beside it.
  fstab-with-the-daemon = {
    verified = true;
    services.mounts.tree.path = "/srv/tree";
    also.fileSystems = {
      "/srv/castore" = {
        device = "local:/var/lib/castore-fs";
        fsType = "castore-fs";
        noCheck = true;
        options = [
          "_netdev"
          "allow_other"
          "nofail"
        ];
      };
      "/srv/work" = {
        overlay = {
          lowerdir = [ "/srv/castore" ];
          upperdir = "/var/tmp/work/upper";
          workdir = "/var/tmp/work/work";
        };
        options = [
          "_netdev"
          "nofail"
        ];
      };
    };
    check = config: [
      (
        match ".*local:/var/lib/castore-fs /srv/castore castore-fs _netdev,allow_other,nofail 0 0\n.*" config.environment.etc.fstab.text
        != null
      )
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
      (!config.programs.fuse.enable)
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
    verified = true;
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
        # Its Nix knows the paths before anything can collect them.
        (elem "nix-gc.service" config.systemd.services.castore-fs-registration.before)
        (elem "nix-gc.service" config.systemd.services.castore-fs-registration.requiredBy)
        (elem "virtiofs" config.boot.initrd.availableKernelModules)
      ];
  };

  guest-by-image = {
    services.enable = false;
    services.guest = {
      enable = true;
      store = "pmem";
      nixStore.enable = true;
    };
    check =
      config:
      let
        lower = config.fileSystems."/nix/.castore";
      in
      [
        (lower.device == "/dev/pmem0" && lower.fsType == "erofs" && lower.neededForBoot)
        (elem "dax=always" lower.options)
        (elem "virtio_pmem" config.boot.initrd.kernelModules)
        (elem "erofs" config.boot.initrd.availableKernelModules)
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
    refused = ''mounts.tree.store: there is no store "mian"'';
  };

  refuses-a-listener-of-an-undeclared-store = {
    services.settings.listen.network = {
      store = "other";
      address = "[::]:7740";
    };
    refused = ''listen.network.store: there is no store "other"'';
  };

  refuses-a-guest-of-an-undeclared-store = {
    services.virtiofs.guest.store = "other";
    refused = ''virtiofs.guest.store: there is no store "other"'';
  };

  refuses-a-mount-that-does-not-say-which-store = {
    services.stores = {
      one.url = "memory:";
      two.url = "memory:";
    };
    services.mounts.tree.path = "/srv/tree";
    refused = "there are several stores (one, two)";
  };

  refuses-a-store-that-is-nowhere = {
    services.stores.local = { };
    refused = "stores.local: a store needs one of url";
  };

  refuses-two-mounts-on-one-path = {
    services.mounts = {
      a.path = "/srv/tree";
      b.path = "/srv//tree/";
    };
    refused = ''the mount "a" is at this place already'';
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
    refused = "this must be the absolute path of a directory";
  };

  refuses-a-mount-on-everything = {
    services.mounts.tree.path = "/";
    refused = "the absolute path of a directory other than /";
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
    fires = [ "Leave out `mounts.tree.listRoot`" ];
  };

  refuses-an-unlistable-root-below-the-nix-store = {
    services.mounts.tree = {
      path = "/run/castore-fs/store";
      overNixStore = true;
      listRoot = false;
    };
    fires = [ "/nix/store cannot be listed either" ];
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
    refused = ''the store has "url" already'';
  };

  refuses-two-kinds-in-settings-as-well = {
    services.settings.stores = {
      disk.url = "local:/var/lib/castore-fs";
      main = {
        url = "memory:";
        mirrors.of = [ "disk" ];
      };
    };
    refused = ''stores.main.mirrors: the store has "url" already'';
  };

  refuses-a-cache-of-an-undeclared-store = {
    services.stores = {
      cached.url = "local:/var/cache/castore-fs";
      main.cache = {
        near = "cached";
        far = [ "upstraem" ];
      };
    };
    refused = ''stores.main.cache.far: there is no store "upstraem"'';
  };

  refuses-mirrors-of-an-undeclared-store = {
    services.stores = {
      one.url = "memory:";
      main.mirrors.of = [
        "one"
        "two"
      ];
    };
    refused = ''stores.main.mirrors.of: there is no store "two"'';
  };

  refuses-a-filter-of-an-undeclared-store = {
    services.stores.main.filter = {
      store = "all";
      roots = [ "app-*" ];
    };
    refused = ''stores.main.filter.store: there is no store "all"'';
  };

  refuses-a-join-of-an-undeclared-store = {
    services.stores.main.join = [ "all" ];
    refused = ''stores.main.join: there is no store "all"'';
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
    refused = ''a cache needs a local store, and "near" is none'';
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
    refused = ''the cache "one" has this local store already'';
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
    refused = "this store is made of itself: a of b of c of a";
  };

  refuses-a-store-that-joins-itself = {
    services.stores.a.join = [ "a" ];
    refused = "a store cannot be made of itself";
  };

  refuses-a-token-in-the-clear = {
    services.stores.upstream = {
      url = "grpc+http://castore.example.org";
      credential = "upstream";
    };
    services.credentials.upstream = "/run/keys/upstream";
    refused = "a token would be sent unencrypted";
  };

  refuses-a-credential-for-a-folder = {
    services.stores.disk = {
      url = "local:/var/lib/castore-fs";
      credential = "disk";
    };
    services.credentials.disk = "/run/keys/disk";
    refused = "stores.disk.token-file: only a gRPC server accepts a token";
  };

  refuses-certificates-without-tls = {
    services.stores.upstream = {
      url = "grpc+unix:/run/upstream.sock";
      tls.authorities = "/etc/ca.pem";
    };
    refused = "only grpc+https uses certificates";
  };

  refuses-a-certificate-without-its-key = {
    services.stores.upstream = {
      url = "grpc+https://castore.example.org";
      tls.certificate = "client";
    };
    services.credentials.client = "/run/keys/client.pem";
    refused = "a certificate needs its key";
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
    fires = [ "where every user can read it" ];
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

  refuses-flags-without-effect = {
    services.virtiofs.guest.extraFlags = [ "--xattr" ];
    fires = [ "Say it in `virtiofs.guest.settings`" ];
  };

  an-image-needs-its-file-system = {
    verified = true;
    services.settings.mounts.tree = {
      path = "/srv/tree";
      root = "tree";
      view = "auto";
    };
    check = config: [ (elem "erofs" config.boot.kernelModules) ];
  };

  no-image-needs-none = {
    services.settings.mounts.tree = {
      path = "/srv/tree";
      root = "tree";
      view = "fuse";
    };
    check = config: [ (!elem "erofs" config.boot.kernelModules) ];
  };

  refuses-settings-without-effect = {
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
    fires = [ "where every user can read it" ];
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
