# What a configuration says, and what has to come of it:
#   rendered  the file expected/<rendered>.toml says the same as the daemon's file;
#             tests/nixos_config.rs has the daemon read each of these files
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
        store = "upstream";
        root = "tree";
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
    unit = [
      "LoadCredential=upstream:/run/keys/upstream"
      "ExecStart="
      "--config /etc/castore-fs/config.toml --some-flag"
    ];
    check =
      config:
      let
        guest = config.systemd.services.castore-fs-virtiofs-guest.serviceConfig;
        token = "/run/credentials/castore-fs-virtiofs-guest.service/upstream";
      in
      [
        (elem 7740 config.networking.firewall.allowedTCPPorts)
        (
          config.systemd.sockets.castore-fs-virtiofs-guest.socketConfig.ListenStream
          == "/run/castore-fs-virtiofs/guest.sock"
        )
        (guest.LoadCredential == [ "upstream:/run/keys/upstream" ])
        (
          match ".* virtiofs --store '?grpc.https://castore.example.org[?]token-file=${token}'? --root tree" guest.ExecStart
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
    check =
      config:
      let
        unit = config.systemd.services.castore-fs-nix-store;
      in
      [
        (elem "castore-fs.service" unit.after)
        # Nothing that boots waits for it, and it outlives the daemon's restarts.
        (elem "castore-fs.service" unit.wants)
        (!unit.restartIfChanged)
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
    throws = config: config.services.castore-fs.rendered;
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

  refuses-a-credential-that-is-not-declared = {
    services.stores.upstream = {
      url = "grpc+https://castore.example.org";
      credential = "upstream";
    };
    fires = [ "Set `credentials.upstream`" ];
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
