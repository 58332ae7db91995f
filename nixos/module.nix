# services.castore-fs: the daemon on NixOS.
#
# The unit is the package's own (`systemd/castore-fs.service`), the one that tests/system runs on
# another distribution; here stands only what NixOS adds to it. It reads
# /etc/castore-fs/config.toml, so that a changed setting is a reload, which leaves every other mount
# alone, and only a changed program or unit is a restart. A restart hands the mounts over through
# systemd's descriptor store; hence `stopIfChanged = false`, for a stop and a start would not.
#
# `stores` and `mounts` are for people. They end in `settings`, which is the file, and all that is
# checked is checked there: nothing set in `settings` alone escapes.
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
    specifiers
    storeSettings
    virtiofsSettings
    ;
  declared = import ./declared.nix { inherit lib cfg; };

  # What is not declared is an assertion's to report.
  loadCredential = name: "${name}:${specifiers (toString (cfg.credentials.${name} or ""))}";

  # tmpfiles reads a path within single quotes.
  inTmpfiles = path: specifiers (lib.replaceStrings [ "\\" "'" ] [ "\\\\" "\\'" ] path);

  served = lib.filterAttrs (_: guest: !guest.isolated) cfg.virtiofs;
  usesFuse = cfg.settings.mounts != { };
  unprivileged = cfg.user != null && cfg.user != "root";
  byHelper = unprivileged && usesFuse && cfg.mountWith == "fusermount";
  usesImages = lib.any (mount: (mount.root or null) != null && (mount.view or null) != "fuse") (
    lib.attrValues cfg.settings.mounts
  );
  inFstab = lib.any (
    f:
    lib.elem f.fsType [
      "castore-fs"
      "fuse.castore-fs"
    ]
  ) (lib.attrValues config.fileSystems);

  # The port of "[::]:7740" or "0.0.0.0:7740"; none of a Unix socket.
  portOf =
    address:
    let
      port = builtins.match "[^/]*:([0-9]+)" address;
    in
    if port == null then null else lib.toIntBase10 (lib.head port);
  ports = lib.filter (port: port != null) (
    map (listener: portOf listener.address) (lib.attrValues cfg.settings.listen)
  );

  metricsPort = portOf (toString (cfg.settings.metrics.address or ""));
  usesPrivilegedPort = lib.any (port: port != null && port < 1024) (ports ++ [ metricsPort ]);

  # The superuser makes the directories of mounts itself; for others tmpfiles does.
  mountDirectories = lib.optionalAttrs (!byHelper) (
    lib.mapAttrs' (_: mount: lib.nameValuePair (inTmpfiles mount.path) { d = { }; }) cfg.settings.mounts
  );
  # fusermount3 wants a directory of the user's own. Its owner can be set only while nothing is mounted
  # there, so that tmpfiles, which knows nothing of that, could do it at boot alone. The kernel's table shows
  # what is mounted: into a mount of another user's root may not even look.
  makeDirectories = lib.concatStringsSep "; " (
    lib.mapAttrsToList (
      _: mount:
      let
        path = lib.escapeShellArg mount.path;
        parts = lib.filter (part: part != "" && part != ".") (lib.splitString "/" mount.path);
        inTable =
          lib.replaceStrings [ "\\" " " "\t" "\n" ] [ "\\134" "\\040" "\\011" "\\012" ]
            "/${lib.concatStringsSep "/" parts}";
        owner = lib.escapeShellArgs [
          "--owner"
          cfg.user
          "--group"
          cfg.group
        ];
      in
      "cut -d ' ' -f 5 /proc/self/mountinfo | grep -qxF ${lib.escapeShellArg inTable} || install -d ${owner} ${path}"
    ) cfg.settings.mounts
  );

  # Those of local stores as well, except the one that systemd makes.
  storeDirectories = lib.listToAttrs (
    map
      (
        path:
        lib.nameValuePair (inTmpfiles path) {
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
          ) (lib.attrValues declared.stores)
        )
      )
  );

  # With the set-group-ID bit: a socket that is made in there has the directory's group, which the daemon
  # has no privilege to give.
  guestDirectories = lib.mapAttrs' (
    _: guest:
    lib.nameValuePair (inTmpfiles (dirOf guest.socket)) {
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
  lower = (lib.head (lib.attrValues overStore)).path;
  overlay = verb: [
    pkgs.runtimeShell
    "${./nix-store-overlay.sh}"
    verb
    lower
  ];
  collectsByItself = toString (config.nix.settings.min-free or 0) != "0";
  systemctl = "${config.systemd.package}/bin/systemctl";
  shell =
    script:
    execArgs [
      pkgs.runtimeShell
      "-c"
      script
    ];
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
      # A store without any setting is one that the daemon refuses.
      default =
        let
          settings = pruned cfg.settings;
        in
        settings
        // lib.mapAttrs (_: declared.filled) (
          lib.intersectAttrs (lib.genAttrs [ "listen" "mounts" "virtiofs" ] (_: null)) settings
        )
        // lib.optionalAttrs (cfg.settings.stores != { }) {
          stores = lib.mapAttrs (_: pruned) declared.stores;
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
        # A mount that a reload adds would find no directory of the user's own; a restart hands over.
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
              (execArgs (
                [
                  (lib.getExe cfg.package)
                  "daemon"
                  "--config"
                  "/etc/castore-fs/config.toml"
                ]
                ++ cfg.extraFlags
              ))
            ];
          })
          (lib.mkIf (cfg.user != null) { User = cfg.user; })
          (lib.mkIf (cfg.group != null) { Group = cfg.group; })
          (lib.mkIf (unprivileged && usesFuse && cfg.mountWith == "capability") {
            AmbientCapabilities = [ "CAP_SYS_ADMIN" ];
          })
          # The superuser, too, has no capability that the unit does not list.
          (lib.mkIf usesPrivilegedPort {
            CapabilityBoundingSet = [ "CAP_NET_BIND_SERVICE" ];
            AmbientCapabilities = lib.mkIf unprivileged [ "CAP_NET_BIND_SERVICE" ];
          })
          # For a service that is not the superuser every one of these implies NoNewPrivileges, with which a
          # setuid program is an ordinary one.
          (lib.mkIf byHelper {
            ExecStartPre = "+${shell makeDirectories}";
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
        (lib.mkIf unprivileged (mountDirectories // storeDirectories))
        guestDirectories
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

      # The Nix daemon collects by itself with `min-free`, and notifies no unit.
      systemd.services.castore-fs-nix-store-refresh = lib.mkIf collectsByItself {
        description = "Find below the Nix store what was collected from it";
        serviceConfig = {
          Type = "oneshot";
          ExecStart = "${systemctl} reload castore-fs-nix-store.service";
        };
      };
      systemd.timers.castore-fs-nix-store-refresh = lib.mkIf collectsByItself {
        description = "Find below the Nix store what was collected from it";
        wantedBy = [ "timers.target" ];
        timerConfig.OnCalendar = "hourly";
      };

      # The overlay follows a daemon that is stopped and started; the unit below stays active.
      systemd.services.castore-fs.path = [ pkgs.util-linux ];
      systemd.services.castore-fs.serviceConfig = {
        ExecStartPost = "+-${shell "${lib.escapeShellArgs (overlay "stale")} && ${systemctl} --no-block try-restart castore-fs-nix-store.service"}";
        ExecStopPost = "+-${execArgs (overlay "stopped")}";
      };

      systemd.services.castore-fs-nix-store = {
        description = "Layer the machine's own Nix store over ${specifiers lower}";
        # The machine boots without it, and without the network: its own store is on top, and
        # nothing in there waits for what is below.
        wantedBy = [ "multi-user.target" ];
        wants = [ unit ];
        after = [ unit ];
        # A reload of the daemon may have made the mount anew. This one waits for it to end.
        unitConfig.ReloadPropagatedFrom = unit;
        path = [
          pkgs.attr
          pkgs.gnugrep
          pkgs.util-linux
        ];
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          ExecStart = execArgs (overlay "up");
          ExecStop = execArgs (overlay "down");
          # Has the machine look again for what was not there, as while the store could not be reached; and in the
          # mount that is there now.
          ExecReload = execArgs (
            overlay "reload"
            ++ [
              systemctl
              "--no-block"
              "try-restart"
              "nix-daemon.service"
            ]
          );
          # The Nix daemon made its own view of the store when it started.
          ExecStartPost = "-${systemctl} --no-block try-restart nix-daemon.service";
          ExecStopPost = "-${systemctl} --no-block try-restart nix-daemon.service";
        };
        restartIfChanged = false;
      };
    })
  ];
}
