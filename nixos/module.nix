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

  # A build fails on a file that the daemon would refuse, and says what the daemon would say.
  written = format.generate "castore-fs.toml" cfg.rendered;
  checked = pkgs.runCommand "castore-fs-checked.toml" { } ''
    ${lib.getExe cfg.package} check-config ${written}
    ln -s ${written} "$out"
  '';
  configFile = if cfg.checkConfig then checked else written;

  # TOML has no null, and a table that nobody filled says nothing.
  pruned =
    value:
    if lib.isAttrs value then
      lib.filterAttrs (_: v: v != null && v != { }) (lib.mapAttrs (_: pruned) value)
    else
      value;

  # The URL of a store as the daemon, or another unit, needs it: its token is that unit's credential.
  urlFor =
    unit: store:
    let
      separator = if lib.hasInfix "?" store.url then "&" else "?";
    in
    if store.credential == null then
      store.url
    else
      "${store.url}${separator}token-file=/run/credentials/${unit}/${store.credential}";

  loadCredential = name: "${name}:${toString cfg.credentials.${name}}";

  usesFuse = cfg.settings.mounts != { };
  unprivileged = cfg.user != null && cfg.user != "root";
  byHelper = unprivileged && usesFuse && cfg.mountWith == "fusermount";
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

  overStore = lib.filterAttrs (_: mount: mount.overNixStore) cfg.mounts;
  overStoreMount = lib.head (lib.attrValues overStore);
in
{
  options.services.castore-fs = {
    enable = lib.mkEnableOption "the content-addressed file system castore-fs";

    package = lib.mkPackageOption pkgs "castore-fs" { };

    stores = mkOption {
      type = types.attrsOf (types.submodule ./store.nix);
      default = { };
      example = lib.literalExpression ''
        {
          disk.url = "local:/var/lib/castore-fs";
          upstream = {
            url = "grpc+https://castore.example.org";
            credential = "upstream";
          };
        }
      '';
      description = ''
        Where content comes from, by a name that mounts and listeners use. Without any there is one,
        named `default`, in {file}`${home}`.
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
      description = "What is mounted where, by a name of your own.";
    };

    virtiofs = mkOption {
      type = types.attrsOf (types.submodule ./virtiofs.nix);
      default = { };
      example.guest.store = "disk";
      description = ''
        What is served to virtual machines on this host, by a name of your own: each by a process that
        has given up every privilege and every file but its store's.
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
        The daemon's configuration file, key by key as `docs/config.md` has them; `stores` and
        `mounts` above end here. Keys that this module does not know go into the file as they are.
        The file is readable by everybody: secrets belong into
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
      default = pruned cfg.settings;
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
        `/run/credentials/${unit}/<name>` (`LoadCredential=`), and nobody else sees it. The files are on
        the machine already (from agenix, sops-nix, a TPM …); a path into the Nix store, which
        everybody can read, is refused.
      '';
    };

    user = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "castore-fs";
      description = ''
        Whom the daemon runs as; null for what its unit says, which is root. The user `castore-fs` is
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
        How a daemon that is not root mounts: with the capability to do so (CAP_SYS_ADMIN and nothing
        else of root's), or through the setuid helper `fusermount3`. The helper asks for a weaker
        sandbox, since it has to become root, and shows a mount to others only with
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
      programs.fuse.enable = lib.mkIf (cfg.enable || inFstab) true;
    }

    (lib.mkIf cfg.enable {
      assertions = import ./assertions.nix { inherit lib config ports; };

      services.castore-fs.settings = {
        stores = lib.mapAttrs (_: store: store.settings // { url = urlFor unit store; }) cfg.stores;
        mounts = lib.mapAttrs (
          _: mount:
          mount.settings
          // lib.filterAttrs (_: v: v != null) {
            inherit (mount) store path;
            list-root = if mount.listRoot == null && mount.overNixStore then false else mount.listRoot;
            allow-other = mount.allowOther;
          }
        ) cfg.mounts;
      };

      environment.systemPackages = [ cfg.package ];
      environment.etc."castore-fs/config.toml".source = configFile;

      systemd.packages = [ cfg.package ];
      systemd.services.castore-fs = {
        wantedBy = [ "multi-user.target" ];
        stopIfChanged = false;
        reloadTriggers = [ configFile ];
        path = lib.mkIf byHelper [ "/run/wrappers" ];
        serviceConfig = lib.mkMerge [
          (lib.mkIf (cfg.credentials != { }) {
            LoadCredential = map loadCredential (lib.attrNames cfg.credentials);
          })
          (lib.mkIf (cfg.extraFlags != [ ]) {
            ExecStart = [
              ""
              "${lib.getExe cfg.package} daemon --config /etc/castore-fs/config.toml ${lib.escapeShellArgs cfg.extraFlags}"
            ];
          })
          (lib.mkIf (cfg.user != null) { User = cfg.user; })
          (lib.mkIf (cfg.group != null) { Group = cfg.group; })
          (lib.mkIf (unprivileged && usesFuse && cfg.mountWith == "capability") {
            AmbientCapabilities = [ "CAP_SYS_ADMIN" ];
          })
          # For a service that is not root every one of these implies NoNewPrivileges, with which a
          # setuid program is an ordinary one.
          (lib.mkIf byHelper {
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

      # Root makes these folders itself. Where it is not root, fusermount3 wants a folder of the user's
      # own; `d!` is at boot alone, when nothing is mounted there yet whose owner could be set.
      systemd.tmpfiles.settings."10-castore-fs" = lib.mkIf unprivileged (
        lib.mapAttrs' (
          _: mount:
          lib.nameValuePair mount.path (
            if byHelper then { "d!" = { inherit (cfg) user group; }; } else { d = { }; }
          )
        ) cfg.settings.mounts
      );

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

    (lib.mkIf cfg.enable {
      systemd.sockets = lib.mapAttrs' (
        name: guest:
        lib.nameValuePair "castore-fs-virtiofs-${name}" {
          description = "castore-fs for the virtual machine ${name}";
          wantedBy = [ "sockets.target" ];
          socketConfig = {
            ListenStream = guest.socket;
            SocketMode = guest.socketMode;
            RemoveOnStop = true;
          }
          // lib.optionalAttrs (guest.socketGroup != null) { SocketGroup = guest.socketGroup; };
        }
      ) cfg.virtiofs;

      systemd.services = lib.mapAttrs' (
        name: guest:
        let
          self = "castore-fs-virtiofs-${name}";
          only = lib.head (lib.attrNames cfg.settings.stores ++ [ "default" ]);
          chosen = if guest.store == null then only else guest.store;
          # An undeclared one is an assertion's to tell.
          store =
            cfg.stores.${chosen} or {
              url =
                if cfg.settings.stores ? ${chosen} then
                  # One that is made of others is described in the daemon's file.
                  cfg.settings.stores.${chosen}.url or "store:${chosen}"
                else
                  "local:${home}";
              credential = null;
            };
        in
        lib.nameValuePair self {
          description = "castore-fs for the virtual machine ${name}";
          # The daemon makes the store.
          wants = [ unit ];
          after = [ unit ];
          serviceConfig = {
            Type = "notify";
            ExecStart = lib.escapeShellArgs (
              [
                (lib.getExe cfg.package)
                "virtiofs"
                "--store"
                (urlFor "${self}.service" store)
              ]
              ++ lib.optionals (guest.root != null) [
                "--root"
                guest.root
              ]
              ++ lib.optional (!guest.listRoot) "--no-list-root"
              ++ guest.extraFlags
            );
            Restart = "on-failure";
            LoadCredential = lib.optional (store.credential != null) (loadCredential store.credential);
            # Nobody else has to see what this does, so it has the sandbox whole; what is left of
            # privileges it gives up by itself.
            CapabilityBoundingSet = "";
            LockPersonality = true;
            MemoryDenyWriteExecute = true;
            NoNewPrivileges = true;
            PrivateDevices = true;
            PrivateNetwork = lib.hasPrefix "local:" store.url;
            PrivateTmp = true;
            ProtectClock = true;
            ProtectControlGroups = true;
            ProtectHome = true;
            ProtectHostname = true;
            ProtectKernelLogs = true;
            ProtectKernelModules = true;
            ProtectKernelTunables = true;
            ProtectProc = "invisible";
            ProtectSystem = "strict";
            RestrictAddressFamilies = [
              "AF_UNIX"
              "AF_INET"
              "AF_INET6"
            ];
            RestrictNamespaces = true;
            RestrictRealtime = true;
            RestrictSUIDSGID = true;
            SystemCallArchitectures = "native";
            UMask = "0077";
          }
          // lib.optionalAttrs (cfg.user != null) {
            User = cfg.user;
            Group = cfg.group;
          };
        }
      ) cfg.virtiofs;
    })

    (lib.mkIf (cfg.enable && overStore != { }) {
      systemd.services.castore-fs-nix-store = {
        description = "Layer the machine's own Nix store over ${overStoreMount.path}";
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
          ExecStart = "${pkgs.runtimeShell} ${./nix-store-overlay.sh} up ${lib.escapeShellArg overStoreMount.path}";
          ExecStop = "${pkgs.runtimeShell} ${./nix-store-overlay.sh} down";
          # The Nix daemon made its own view of the store when it started.
          ExecStartPost = "-${config.systemd.package}/bin/systemctl --no-block try-restart nix-daemon.service";
          ExecStopPost = "-${config.systemd.package}/bin/systemctl --no-block try-restart nix-daemon.service";
        };
        restartIfChanged = false;
      };
    })
  ];

  meta.doc = ../docs/nixos.md;
}
