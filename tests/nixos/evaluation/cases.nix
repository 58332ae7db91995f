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
  has =
    words: text:
    let
      bare = builtins.unsafeDiscardStringContext;
    in
    length (builtins.split (bare words) (bare text)) > 1;
  # Whether a file whose name ends so comes with `text` to the machine.
  hasContextOf = name: text: builtins.any (has name) (builtins.attrNames (builtins.getContext text));
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

  # What is set for a store in `settings`, or in a store's `settings`, applies to an isolated guest's process too.
  isolated-guests-of-stores-with-further-keys = {
    services = {
      stores.upstream = {
        url = "grpc+https://castore.example.org";
        credential = "token";
        settings.verify = "chunks";
      };
      settings.stores.other = {
        url = "grpc+https://other.example.org?wait-connect=1";
        token-file = "/run/credentials/castore-fs.service/other";
        tls-ca-cert-path = "/etc/other.pem";
      };
      virtiofs.one = {
        store = "upstream";
        isolated = true;
      };
      virtiofs.two = {
        store = "other";
        isolated = true;
      };
      credentials = {
        token = "/run/keys/token";
        oth = "/run/keys/oth";
        other = "/run/keys/100%other";
      };
    };
    check =
      config:
      let
        one = config.systemd.services.castore-fs-virtiofs-one.serviceConfig;
        two = config.systemd.services.castore-fs-virtiofs-two.serviceConfig;
      in
      [
        (has "[?]token-file=/run/credentials/castore-fs-virtiofs-one.service/token&verify=chunks$" one.ExecStart)
        (one.LoadCredential == [ "token:/run/keys/token" ])
        (has "[?]wait-connect=1&tls-ca-cert-path=/etc/other.pem&token-file=/run/credentials/castore-fs-virtiofs-two.service/other$" two.ExecStart)
        # And nothing that is another's.
        (two.LoadCredential == [ "other:/run/keys/100%%other" ])
      ];
  };

  refuses-an-isolated-guest-of-a-hidden-store = {
    services.stores.disk.url = "local:/home/castore/store";
    services.virtiofs.guest.isolated = true;
    fires = [
      "its store is in /home/castore/store"
      "Leave out `virtiofs.guest.isolated`"
    ];
  };

  refuses-an-isolated-guest-of-a-hidden-socket = {
    services.stores.disk.url = "grpc+unix:///tmp/castore.sock?wait-connect=1";
    services.virtiofs.guest.isolated = true;
    fires = [ "its store is in /tmp/castore.sock" ];
  };

  # systemd expands % and $, in quotes too, and splits at spaces.
  paths-that-systemd-would-expand = {
    verified = true;
    services = {
      mounts.store = {
        path = "/run/my lower/100%/\${HOME}'s";
        overNixStore = true;
      };
      extraFlags = [ "100% \${HOME} 'a\\b' \"c\"" ];
      virtiofs.guest = {
        isolated = true;
        socket = "/run/100%.sock";
        tag = "a b\${HOME}";
      };
      credentials.token = "/run/keys/100%";
    };
    unit = [
      ''/bin/castore-fs daemon --config /etc/castore-fs/config.toml "100%% $''${HOME} 'a\\b' \"c\""''
      ''nix-store-overlay.sh stopped "/run/my lower/100%%/$''${HOME}'s"''
      ''stale '/run/my lower/100%%/$''${HOME}'\\'''s' && ''
      "LoadCredential=token:/run/keys/100%%"
    ];
    check =
      config:
      let
        unit = config.systemd.services.castore-fs-nix-store;
        guest = config.systemd.services.castore-fs-virtiofs-guest.serviceConfig;
        path = ''"/run/my lower/100%%/$''${HOME}'s"'';
        ends = words: text: builtins.substring (lengthOf text - lengthOf words) (-1) text == words;
        lengthOf = builtins.stringLength;
      in
      [
        (ends "nix-store-overlay.sh up ${path}" unit.serviceConfig.ExecStart)
        (ends ''--tag "a b$''${HOME}"'' guest.ExecStart)
        (config.systemd.sockets.castore-fs-virtiofs-guest.socketConfig.ListenStream == "/run/100%%.sock")
      ];
  };

  paths-that-systemd-would-expand-of-a-user = {
    verified = true;
    services = {
      user = "castore-fs";
      mountWith = "fusermount";
      stores.disk.url = "local:/srv/100% 'of'";
      mounts.tree = {
        path = "/srv/my tree/100%/\${HOME}\\";
        allowOther = false;
      };
    };
    unit = [
      ''-c "cut -d ' ' -f 5 /proc/self/mountinfo | grep -qxF '/srv/my\\040tree/100%%/$''${HOME}\\134' || install -d --owner castore-fs --group castore-fs '/srv/my tree/100%%/$''${HOME}\\'"''
    ];
    check = config: [
      (hasAttr "/srv/100%% \\'of\\'" config.systemd.tmpfiles.settings."10-castore-fs")
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
        directories = config.systemd.tmpfiles.settings."10-castore-fs";
      in
      [
        (directories."/var/cache/castore-fs".d.user == "castore-fs")
        # systemd makes it.
        (!(hasAttr "/var/lib/castore-fs/store" directories))
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
        (has "cut -d ' ' -f 5 /proc/self/mountinfo [|] grep -qxF /srv/tree [|][|] install -d --owner castore-fs --group castore-fs /srv/tree" unit.serviceConfig.ExecStartPre)
        (!(hasAttr "/srv/tree" (config.systemd.tmpfiles.settings."10-castore-fs" or { })))
        # A mount more finds its directory.
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
        # A reload of the daemon makes the mount anew whose store or options are others.
        (has "nix-store-overlay.sh reload /run/castore-fs/store .*/systemctl --no-block try-restart nix-daemon.service$" unit.serviceConfig.ExecReload)
        (unit.unitConfig.ReloadPropagatedFrom or null == "castore-fs.service")
        (!(hasAttr "ExecStartPost" config.systemd.services.nix-gc.serviceConfig))
        # For findmnt and umount.
        (elem "util-linux" (
          map (package: package.pname or package.name) config.systemd.services.castore-fs.path
        ))
      ];
  };

  refuses-a-path-below-the-nix-store-that-overlayfs-would-split = {
    services.mounts.store = {
      path = "/run/castore-fs:store";
      overNixStore = true;
    };
    fires = [ "a comma, a colon" ];
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
    also.nix = {
      gc.automatic = true;
      settings.experimental-features = "nix-command flakes";
    };
    check =
      config:
      let
        daemon = config.systemd.services.nix-daemon;
        socket = config.systemd.sockets.castore-fs-nix-store;
      in
      [
        # Nix compares the directories with the kernel's table of mounts; systemd reads %% as %.
        (
          match (
            "local-overlay://[?]lower-store=unix%%3A%%2F%%2F%%2Frun%%2Fcastore-fs-nix-store[.]sock%%3Freal%%3D%%2Frun%%2Fcastore-fs-nix-store-lower"
            + "&remount-hook=.*&upper-layer=%%2Frun%%2Fcastore-fs-nix-store%%2Fstore"
          ) daemon.environment.NIX_REMOTE != null
        )
        # Services, sessions (sudo's too) and shells ask the daemon, and no unit changes by that.
        (config.systemd.settings.Manager.DefaultEnvironment == [ "NIX_REMOTE=daemon" ])
        (config.environment.sessionVariables.NIX_REMOTE == "daemon")
        (config.environment.variables.NIX_REMOTE == "daemon")
        # In one string or a list, features that a machine has of its own stay.
        (elem "local-overlay-store" config.nix.settings.extra-experimental-features)
        (config.nix.settings.experimental-features == "nix-command flakes")
        # A daemon that runs without the socket is started anew with it.
        (elem "castore-fs-nix-store.socket" config.systemd.services.castore-fs.wants)
        (elem "castore-fs-nix-store.socket" config.systemd.services.castore-fs.after)
        # Nix starts after the overlay, and without it if it fails.
        (elem "castore-fs-nix-store.service" daemon.wants)
        (elem "castore-fs-nix-store.service" daemon.after)
        (!(elem "castore-fs-nix-store.service" daemon.requires))
        # What is booted is the machine's own.
        (has "nix-store-overlay.sh keep /run/castore-fs-nix-store-lower " config.system.preSwitchChecks.castore-fs-nix-store)
        (socket.listenStreams == [ "/run/castore-fs-nix-store.sock" ])
        (socket.socketConfig.Service == "castore-fs.service")
        (socket.socketConfig.SocketMode == "0600")
        # It boots without a network.
        (!(elem "network-online.target" config.systemd.services.castore-fs-nix-store.after))
      ];
  };

  # A system without castore-fs may have been fetched by a Nix for which it is below.
  disabled-keeps-what-is-switched-to = {
    services.enable = false;
    check = config: [
      (has "nix-store-overlay.sh keep /run/castore-fs-nix-store-lower " config.system.preSwitchChecks.castore-fs-nix-store)
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

  # The stores of the option are not those that other entries mean.
  nix-store-beside-a-mount = {
    services = {
      nixStore.enable = true;
      mounts.castore.path = "/srv/castore";
      settings.listen.network.address = "[::]:7740";
      virtiofs.guest = {
        closure = [ "${builtins.storeDir}/00000000000000000000000000000000-nixos-system" ];
      };
      virtiofs.alone.isolated = true;
      gc.automatic = true;
    };
    check =
      config:
      let
        inherit (config.services.castore-fs) rendered;
        services = config.systemd.services;
      in
      [
        (rendered.stores.default.url or null == "local:/var/lib/castore-fs")
        (rendered.mounts.castore.store or null == "default")
        (rendered.mounts.nix-store.store == "nix-store")
        (rendered.listen.network.store or null == "default")
        (rendered.virtiofs.guest.store or null == "default")
        (has " --store local:/var/lib/castore-fs$" services.castore-fs-virtiofs-alone.serviceConfig.ExecStart)
        (has " local:/var/lib/castore-fs /nix" services.castore-fs-closure-guest.script)
        # One that fails keeps no other from being collected, and fails the service.
        (has "/nix-store --grace 1h [|][|] failed=1" services.castore-fs-gc.serviceConfig.ExecStart)
        (has " local:/var/lib/castore-fs --grace 1h [|][|] failed=1" services.castore-fs-gc.serviceConfig.ExecStart)
        (has "exit [$]{2}failed" services.castore-fs-gc.serviceConfig.ExecStart)
      ];
  };

  nix-store-beside-a-mount-of-the-only-other-store = {
    services = {
      nixStore.enable = true;
      settings.stores.upstream.url = "grpc+https://castore.example.org";
      mounts.castore.path = "/srv/castore";
    };
    check = config: [
      (config.services.castore-fs.rendered.mounts.castore.store or null == "upstream")
      (!(hasAttr "default" config.services.castore-fs.rendered.stores))
    ];
  };

  refuses-a-mount-beside-a-nix-store-that-does-not-say-which-store = {
    services = {
      nixStore.enable = true;
      stores.one.url = "memory:";
      stores.two.url = "memory:";
      mounts.castore.path = "/srv/castore";
    };
    refused = "there are several stores (nix-store, nix-store-disk, one, two)";
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
        (has "castore-fs gc --store local:/srv/castore --grace 1d" unit.serviceConfig.ExecStart)
        (!(has "upstream" unit.serviceConfig.ExecStart))
        # A store in /home or /tmp is the one that the daemon has there.
        (!(hasAttr "ProtectHome" unit.serviceConfig) && !(hasAttr "PrivateTmp" unit.serviceConfig))
        (config.systemd.timers.castore-fs-gc.timerConfig.OnCalendar == "daily")
        (config.systemd.timers.castore-fs-gc.wantedBy == [ "timers.target" ])
      ];
  };

  collects-garbage-of-the-daemons-own-store = {
    services.gc.automatic = true;
    check = config: [
      (has "--store local:/var/lib/castore-fs --grace 1h" config.systemd.services.castore-fs-gc.serviceConfig.ExecStart)
    ];
  };

  collects-garbage-in-each-store = {
    verified = true;
    services = {
      stores.broken.url = "local:/srv/broken";
      stores.disk.url = "local:/srv/disk";
      gc = {
        automatic = true;
        grace = "0s";
      };
    };
  };

  collects-garbage-by-every-unit-of-time = {
    services.gc = {
      automatic = true;
      grace = "1h 30min20s1ms";
      dates = "Mon..Fri *-*-01/2 03:15:00 Europe/Vienna";
    };
  };

  refuses-a-grace-that-the-command-does-not-read = {
    services.gc = {
      automatic = true;
      grace = "forever";
    };
    fires = [ "`gc.grace` is \"forever\"" ];
  };

  refuses-a-grace-without-a-unit = {
    services.gc = {
      automatic = true;
      grace = "60";
    };
    fires = [ "numbers with the units ms, s, m or min, h and d" ];
  };

  refuses-a-grace-that-no-store-remembers = {
    services.gc = {
      automatic = true;
      grace = "23h60m1s";
    };
    fires = [ "at most one day" ];
  };

  refuses-to-collect-at-no-time = {
    services.gc = {
      automatic = true;
      dates = "whenever";
    };
    fires = [ "`gc.dates` is \"whenever\"" ];
  };

  # The Nix daemon does not notify a unit of what it collects by itself.
  below-nix-store-with-min-free = {
    verified = true;
    services.mounts.store = {
      path = "/run/castore-fs/store";
      overNixStore = true;
    };
    also.nix.settings.min-free = 1073741824;
    check = config: [
      (has "reload castore-fs-nix-store.service" config.systemd.services.castore-fs-nix-store-refresh.serviceConfig.ExecStart)
      (config.systemd.timers.castore-fs-nix-store-refresh.timerConfig.OnCalendar == "hourly")
    ];
  };

  a-port-of-the-superuser = {
    verified = true;
    services.settings.listen.network.address = "127.0.0.1:443";
    unit = [ "CapabilityBoundingSet=CAP_NET_BIND_SERVICE" ];
    notUnit = [ "AmbientCapabilities=" ];
  };

  a-port-of-the-superuser-for-another-user = {
    services = {
      user = "castore-fs";
      settings.metrics.address = "localhost:80";
    };
    unit = [
      "CapabilityBoundingSet=CAP_NET_BIND_SERVICE"
      "AmbientCapabilities=CAP_NET_BIND_SERVICE"
    ];
  };

  a-port-with-zeros = {
    services = {
      settings.listen.network.address = "0.0.0.0:07740";
      openFirewall = true;
    };
    check = config: [ (config.networking.firewall.allowedTCPPorts == [ 7740 ]) ];
    notUnit = [ "CapabilityBoundingSet=" ];
  };

  fstab-by-its-other-name = {
    services.enable = false;
    also.fileSystems."/srv/castore" = {
      device = "local:/var/lib/castore-fs";
      fsType = "fuse.castore-fs";
      noCheck = true;
    };
    check = config: [ (elem config.services.castore-fs.package config.system.fsPackages) ];
  };

  refuses-an-encoded-token-in-the-nix-store = {
    services.stores.upstream.url = "grpc+https://castore.example.org?token-file=%2Fni%78%2fstore%2F00000000000000000000000000000000-token";
    fires = [ "a secret of the store \"upstream\" is in the Nix store" ];
  };

  refuses-an-undeclared-credential-of-a-listener = {
    services.settings.listen.network = {
      address = "[::]:7740";
      token-file = "/run/credentials/castore-fs.service/tokens";
    };
    fires = [ "`settings` names the credential \"tokens\"" ];
  };

  refuses-a-user-that-there-is-not = {
    services.user = "alice";
    also.users.groups.alice = { };
    fires = [ "the user \"alice\" is not declared" ];
  };

  refuses-a-group-that-there-is-not = {
    services = {
      user = "castore-fs";
      group = "users-of-it";
    };
    fires = [ "the group \"users-of-it\" is not declared" ];
  };

  refuses-a-guest-whose-name-is-no-units = {
    services.virtiofs."a b%".isolated = true;
    fires = [ "the guest \"a b%\" has units of its own" ];
  };

  refuses-a-nix-store-without-the-daemon = {
    services = {
      enable = false;
      nixStore.enable = true;
    };
    fires = [ "`nixStore.enable` is set, and there is no daemon" ];
  };

  refuses-a-nix-store-with-an-old-nix = {
    services.nixStore.enable = true;
    also =
      { pkgs, ... }:
      {
        nix.package = pkgs.nix // {
          version = "2.18.9";
        };
      };
    fires = [ "takes Nix 2.24 or later, and `nix.package` is Nix 2.18.9" ];
  };

  refuses-a-nix-store-that-is-optimised = {
    services.nixStore.enable = true;
    also.nix.optimise.automatic = true;
    fires = [ "Leave `nix.optimise.automatic` out" ];
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
        (has "local:/var/lib/castore-fs ${registration} /run/castore-fs-closures/guest /var/lib/castore-fs-closures ${registration}$" unit.script)
        # A file of its own in the Nix store: the module's source is on no machine.
        (has "${builtins.storeDir}/[0-9a-z]{32}-import-closure.sh " unit.script)
        (hasContextOf "-import-closure.sh" unit.script)
        # What is ordered after it finds the closure.
        (unit.serviceConfig.Type == "oneshot" && unit.serviceConfig.RemainAfterExit)
        (unit.after == [ "castore-fs.service" ])
      ];
  };

  closures-of-stores-in-settings = {
    services = {
      settings.stores = {
        disk.url = "local:/srv/castore";
        other.url = "local:/srv/other";
      };
      virtiofs = {
        one = {
          store = "disk";
          closure = [ "${builtins.storeDir}/00000000000000000000000000000000-nixos-system" ];
        };
        two = {
          store = "other";
          closure = [ "${builtins.storeDir}/00000000000000000000000000000000-nixos-system" ];
        };
      };
    };
    check =
      config:
      let
        inherit (config.systemd) services;
      in
      [
        (has "import-closure.sh local:/srv/castore /" services.castore-fs-closure-one.script)
        (has "import-closure.sh local:/srv/other /" services.castore-fs-closure-two.script)
      ];
  };

  a-closure-of-the-only-store = {
    services = {
      settings.stores.disk.url = "local:/srv/castore";
      virtiofs.guest.closure = [
        "${builtins.storeDir}/00000000000000000000000000000000-nixos-system"
      ];
    };
    check = config: [
      (has "import-closure.sh local:/srv/castore /" config.systemd.services.castore-fs-closure-guest.script)
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

  refuses-two-caches-in-one-directory = {
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

  refuses-a-credential-for-a-directory = {
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

  # Each key of a listener that names a secret.
  refuses-a-listeners-key-in-the-nix-store = {
    services.settings.listen.network = {
      address = "[::]:7740";
      tls-cert-path = "/etc/castore-cert.pem";
      tls-key-path = "${builtins.storeDir}/00000000000000000000000000000000-key.pem";
    };
    fires = [
      "`settings.listen.network.tls-key-path` is in the Nix store, where every user can read it"
      "/run/credentials/castore-fs.service/network"
    ];
  };

  refuses-a-listeners-tokens-in-the-nix-store = {
    services.settings.listen.network = {
      address = "unix:/run/castore-fs/castore.sock";
      token-file = "${builtins.storeDir}/00000000000000000000000000000000-tokens";
    };
    fires = [ "`settings.listen.network.token-file` is in the Nix store" ];
  };

  refuses-a-listeners-signing-key-in-the-nix-store = {
    services.settings.listen.cache = {
      address = "[::]:7740";
      protocol = "binary-cache";
      secret-key-file = "${builtins.storeDir}/00000000000000000000000000000000-secret-key";
    };
    fires = [ "`settings.listen.cache.secret-key-file` is in the Nix store" ];
  };

  # The machine has the file, wherever the module was evaluated.
  authorities-by-a-path-of-nix = {
    services.stores.upstream = {
      url = "grpc+https://castore.example.org";
      tls.authorities = ./expected/one-mount.toml;
    };
    services.virtiofs.guest.isolated = true;
    check =
      config:
      let
        inherit (config.services.castore-fs.rendered.stores.upstream) tls-ca-cert-path;
        command = config.systemd.services.castore-fs-virtiofs-guest.serviceConfig.ExecStart;
      in
      [
        (has "^${builtins.storeDir}/[0-9a-z]{32}-one-mount.toml$" tls-ca-cert-path)
        (hasContextOf "-one-mount.toml" tls-ca-cert-path)
        (hasContextOf "-one-mount.toml" command)
      ];
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
    fires = [ "Set it in `virtiofs.guest.settings`" ];
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
    fires = [ "Set it in `virtiofs.guest.extraFlags`" ];
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
