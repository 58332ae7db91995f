# services.castore-fs: the daemon on NixOS.
#
# The unit is the package's own (`systemd/castore-fs.service`), the one that tests/system runs on
# another distribution; here stands only what NixOS adds to it. It reads
# /etc/castore-fs/config.toml, so that a changed setting is a reload, which leaves every other mount
# alone, and only a changed program or unit is a restart. A restart hands the mounts over through
# systemd's descriptor store; hence `stopIfChanged = false`, for a stop and a start would not.
#
# `stores` and `mounts` are for people. They end in `settings`, which is the file, and all that is
# checked is checked there: nothing said in `settings` alone escapes.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) mkOption types;

  cfg = config.services.castore-fs;
  format = pkgs.formats.toml { };
  settings = import ./settings.nix { inherit lib format; };

  unit = "castore-fs.service";
  home = "/var/lib/castore-fs";

  written = format.generate "castore-fs.toml" cfg.rendered;
  checked = import ./checked-config.nix {
    inherit lib written;
    inherit (cfg) package;
    inherit (pkgs) runCommand;
  };
  configFile = if cfg.checkConfig then checked else written;

  # TOML has no null, and an empty table has no meaning.
  pruned =
    value:
    if lib.isAttrs value then
      lib.filterAttrs (_: v: v != null && v != { }) (lib.mapAttrs (_: pruned) value)
    else
      value;

  inherit (import ./render.nix { inherit lib; })
    execArgs
    mountSettings
    storeSettings
    virtiofsSettings
    ;

  # What is not declared is an assertion's to tell.
  loadCredential = name: "${name}:${toString (cfg.credentials.${name} or "")}";

  served = lib.filterAttrs (_: guest: !guest.isolated) cfg.virtiofs;
  usesFuse = cfg.settings.mounts != { };
  unprivileged = cfg.user != null && cfg.user != "root";
  byHelper = unprivileged && usesFuse && cfg.mountWith == "fusermount";
  usesImages = lib.any (mount: (mount.view or null) != null && mount.view != "fuse") (
    lib.attrValues cfg.settings.mounts
  );
  inFstab = lib.any (f: f.fsType == "castore-fs") (lib.attrValues config.fileSystems);

  # The port of "[::]:7740" or "0.0.0.0:7740"; none of a Unix socket.
  portOf =
    address:
    let
      port = builtins.match "[^/]*:([0-9]+)" address;
    in
    if port == null then null else lib.toInt (lib.head port);
  ports = lib.filter (port: port != null) (
    map (listener: portOf listener.address) (lib.attrValues cfg.settings.listen)
  );

  # Root makes the folders of mounts itself; for others tmpfiles does.
  mountFolders = lib.optionalAttrs (!byHelper) (
    lib.mapAttrs' (_: mount: lib.nameValuePair mount.path { d = { }; }) cfg.settings.mounts
  );
  # fusermount3 wants a folder of the user's own. Its owner can be set only while nothing is mounted
  # there, so that tmpfiles, which knows nothing of that, could do it at boot alone. The kernel's table says
  # what is mounted: into a mount of another user's root may not even look.
  makeFolders = lib.concatStringsSep "; " (
    lib.mapAttrsToList (
      _: mount:
      let
        path = lib.escapeShellArg mount.path;
        parts = lib.filter (part: part != "" && part != ".") (lib.splitString "/" mount.path);
        inTable = lib.replaceStrings [ " " ] [ "\\040" ] "/${lib.concatStringsSep "/" parts}";
        owner = lib.escapeShellArgs [
          "--owner"
          cfg.user
          "--group"
          cfg.group
        ];
      in
      "grep -qF ${lib.escapeShellArg " ${inTable} "} /proc/self/mountinfo || install -d ${owner} ${path}"
    ) cfg.settings.mounts
  );

  # Those of local stores as well, except the one that systemd makes.
  storeFolders = lib.listToAttrs (
    map
      (
        path:
        lib.nameValuePair path {
          d = {
            inherit (cfg) user group;
            mode = "0700";
          };
        }
      )
      (
        lib.filter (path: path != null && path != home && !lib.hasPrefix "${home}/" path) (
          map (
            store:
            if store.url != null && lib.hasPrefix "local:/" store.url then
              lib.removePrefix "//" (lib.removePrefix "local:" store.url)
            else
              null
          ) (lib.attrValues cfg.settings.stores)
        )
      )
  );

  # With the set-group-ID bit: a socket that is made in there has the folder's group, which the daemon
  # has no privilege to give.
  guestFolders = lib.mapAttrs' (
    _: guest:
    lib.nameValuePair (dirOf guest.socket) {
      d = {
        user = if cfg.user == null then "root" else cfg.user;
        group = lib.findFirst (group: group != null) "root" [
          guest.socketGroup
          cfg.group
        ];
        mode = "2755";
      };
    }
  ) (lib.filterAttrs (name: guest: guest.socket == "/run/castore-fs-virtiofs/${name}/socket") served);

  overStore = lib.filterAttrs (_: mount: mount.overNixStore) cfg.mounts;
  lower = lib.escapeShellArg (lib.head (lib.attrValues overStore)).path;
  overlay = "${pkgs.runtimeShell} ${./nix-store-overlay.sh}";
  systemctl = "${config.systemd.package}/bin/systemctl";
in
{
  imports = [
    ./closures.nix
    ./garbage.nix
    ./isolated.nix
    ./nix-store.nix
  ];

  options.services.castore-fs = {
    enable = lib.mkEnableOption "the content-addressed file system castore-fs";

    package = lib.mkPackageOption pkgs "castore-fs" { };

    stores = mkOption {
      type = types.attrsOf (types.submodule ./store.nix);
      default = { };
      example = lib.literalExpression ''
        {
          cached.url = "local:/var/cache/castore-fs";
          upstream = {
            url = "grpc+https://castore.example.org";
            credential = "upstream";
          };
          main.cache = {
            near = "cached";
            far = [ "upstream" ];
            size = "200GiB";
          };
        }
      '';
      description = ''
        Where content comes from, by a name that mounts and listeners use: each store is somewhere
        (`url`), or is made of others (`cache`, `binaryCache`, `mirrors`, `filter`, `join`). Without any
        there is one, named `default`, in {file}`${home}`.
      '';
    };

    mounts = mkOption {
      type = types.attrsOf (types.submodule ./mount.nix);
      default = { };
      example = lib.literalExpression ''
        {
          tree.path = "/srv/tree";
        }
      '';
      description = "What is mounted where, by a name of the user's choice.";
    };

    virtiofs = mkOption {
      type = types.attrsOf (
        types.submoduleWith {
          modules = [ ./virtiofs.nix ];
          specialArgs = { inherit pkgs; };
          shorthandOnlyDefinesConfig = true;
        }
      );
      default = { };
      example.guest.store = "disk";
      description = ''
        What is served to virtual machines on this host, by a name of the user's choice: by the daemon, or by
        processes of their own (`isolated`).
      '';
    };

    settings = mkOption {
      type = types.submodule settings;
      default = { };
      example = lib.literalExpression ''
        {
          listen.network = {
            store = "disk";
            address = "[::]:7740";
          };
          metrics.address = "localhost:9740";
        }
      '';
      description = ''
        The daemon's configuration file, key by key as `docs/config.md` has them; `stores`, `mounts` and
        `virtiofs` above end here. Keys that this module does not know go into the file as they are.
        Every user can read the file: secrets belong into
        {option}`services.castore-fs.credentials`.
      '';
    };

    checkConfig = mkOption {
      type = types.bool;
      default = pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform;
      defaultText = lib.literalMD "whether the machine that builds can run the program";
      description = "Whether the build runs `castore-fs check-config` on the file that it wrote.";
    };

    rendered = mkOption {
      type = types.raw;
      # A store that says nothing is one that the daemon refuses.
      default =
        pruned cfg.settings
        // lib.optionalAttrs (cfg.settings.stores != { }) {
          stores = lib.mapAttrs (_: pruned) cfg.settings.stores;
        };
      readOnly = true;
      internal = true;
      description = "What is written to the file, as a value.";
    };

    credentials = mkOption {
      type = types.attrsOf (
        types.pathWith {
          absolute = true;
          inStore = false;
        }
      );
      default = { };
      example = {
        upstream = "/run/keys/castore-upstream-token";
      };
      description = ''
        Files with secrets, by name: systemd hands each to the daemon as
        `/run/credentials/${unit}/<name>` (`LoadCredential=`), and only the unit can read it. The files are on
        the machine already (from agenix, sops-nix, a TPM …); a path into the Nix store, which
        every user can read, is refused.
      '';
    };

    user = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "castore-fs";
      description = ''
        The daemon's user; null for the unit's own, which is the superuser. The user `castore-fs` is
        made here; any other you declare yourself.
      '';
    };

    group = mkOption {
      type = types.nullOr types.str;
      default = cfg.user;
      defaultText = lib.literalExpression "config.services.castore-fs.user";
      description = "The group that goes with {option}`services.castore-fs.user`.";
    };

    mountWith = mkOption {
      type = types.enum [
        "capability"
        "fusermount"
      ];
      default = "capability";
      description = ''
        How a daemon that is not the superuser mounts: with the capability to do so (CAP_SYS_ADMIN and no
        other), or through the setuid helper `fusermount3`. The helper asks for a weaker
        sandbox, since it has to become the superuser, and shows a mount to others only with
        {option}`programs.fuse.userAllowOther`.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to open the firewall for the TCP listeners in `settings.listen`.";
    };

    extraFlags = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Further arguments of `castore-fs daemon`.";
    };
  };

  config = lib.mkMerge [
    {
      # For `fileSystems` entries, which need no daemon: mount(8) finds the helper.
      system.fsPackages = lib.mkIf (cfg.enable || inFstab) [ cfg.package ];
    }

    (lib.mkIf cfg.enable {
      assertions = import ./assertions.nix { inherit lib config ports; };

      services.castore-fs.settings = {
        stores = lib.mapAttrs (_: storeSettings unit) cfg.stores;
        mounts = lib.mapAttrs (_: mountSettings) cfg.mounts;
        virtiofs = lib.mapAttrs virtiofsSettings served;
      };

      # Its setuid helpers are of use to that one way to mount, and to nothing else here.
      programs.fuse.enable = lib.mkIf byHelper true;

      boot.kernelModules = lib.mkIf usesImages [ "erofs" ];

      environment.systemPackages = [ cfg.package ];
      environment.etc."castore-fs/config.toml".source = configFile;

      systemd.packages = [ cfg.package ];
      systemd.services.castore-fs = {
        wantedBy = [ "multi-user.target" ];
        stopIfChanged = false;
        # A mount that a reload adds would find no folder of the user's own; a restart hands over.
        reloadTriggers = lib.mkIf (!byHelper) [ configFile ];
        restartTriggers = lib.mkIf byHelper [ configFile ];
        path = lib.mkIf byHelper [
          "/run/wrappers"
          pkgs.coreutils
          pkgs.gnugrep
        ];
        serviceConfig = lib.mkMerge [
          (lib.mkIf (cfg.credentials != { }) {
            LoadCredential = map loadCredential (lib.attrNames cfg.credentials);
          })
          (lib.mkIf (cfg.extraFlags != [ ]) {
            ExecStart = [
              ""
              "${lib.getExe cfg.package} daemon --config /etc/castore-fs/config.toml ${execArgs cfg.extraFlags}"
            ];
          })
          (lib.mkIf (cfg.user != null) { User = cfg.user; })
          (lib.mkIf (cfg.group != null) { Group = cfg.group; })
          (lib.mkIf (unprivileged && usesFuse && cfg.mountWith == "capability") {
            AmbientCapabilities = [ "CAP_SYS_ADMIN" ];
          })
          # For a service that is not the superuser every one of these implies NoNewPrivileges, with which a
          # setuid program is an ordinary one.
          (lib.mkIf byHelper {
            ExecStartPre = "+${pkgs.runtimeShell} -c ${
              lib.escapeShellArg (lib.replaceStrings [ "%" ] [ "%%" ] makeFolders)
            }";
            NoNewPrivileges = false;
            CapabilityBoundingSet = "~";
            LockPersonality = false;
            MemoryDenyWriteExecute = false;
            RestrictAddressFamilies = [ "" ];
            RestrictNamespaces = false;
            RestrictRealtime = false;
            RestrictSUIDSGID = false;
            SystemCallArchitectures = [ "" ];
            SystemCallFilter = [ "" ];
          })
        ];
      };

      systemd.tmpfiles.settings."10-castore-fs" = lib.mkMerge [
        (lib.mkIf unprivileged (mountFolders // storeFolders))
        guestFolders
      ];

      networking.firewall.allowedTCPPorts = lib.mkIf cfg.openFirewall ports;

      users = lib.mkIf (cfg.user == "castore-fs") {
        users.castore-fs = {
          isSystemUser = true;
          group = cfg.group;
          inherit home;
        };
        groups = lib.mkIf (cfg.group == "castore-fs") { castore-fs = { }; };
      };
    })

    (lib.mkIf (cfg.enable && overStore != { }) {
      # What Nix's collector removed from this machine's own store is to be found below again.
      systemd.services.nix-gc = lib.mkIf config.nix.gc.automatic {
        serviceConfig.ExecStartPost = "-${systemctl} --no-block reload castore-fs-nix-store.service";
      };

      # The overlay follows a daemon that is stopped and started; the unit below stays active.
      systemd.services.castore-fs.path = [ pkgs.util-linux ];
      systemd.services.castore-fs.serviceConfig = {
        ExecStartPost = "+-${pkgs.runtimeShell} -c '${overlay} stale ${lower} && ${systemctl} --no-block try-restart castore-fs-nix-store.service'";
        ExecStopPost = "+-${overlay} stopped ${lower}";
      };

      systemd.services.castore-fs-nix-store = {
        description = "Layer the machine's own Nix store over ${lower}";
        # The machine boots without it, and without the network: its own store is on top, and
        # nothing in there waits for what is below.
        wantedBy = [ "multi-user.target" ];
        wants = [ unit ];
        after = [ unit ];
        path = [
          pkgs.attr
          pkgs.util-linux
        ];
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          ExecStart = "${overlay} up ${lower}";
          ExecStop = "${overlay} down";
          # Has the machine look again for what was not there, as while the store could not be reached.
          ExecReload = "${overlay} refresh ${lower}";
          # The Nix daemon made its own view of the store when it started.
          ExecStartPost = "-${systemctl} --no-block try-restart nix-daemon.service";
          ExecStopPost = "-${systemctl} --no-block try-restart nix-daemon.service";
        };
        restartIfChanged = false;
      };
    })
  ];
}
