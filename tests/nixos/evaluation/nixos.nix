# The options of NixOS that the modules set, with the types, defaults and merges that they have there
# (transcribed from nixos-26.05: nixos/modules/{system/boot/systemd*,system/boot/tmpfiles,tasks/filesystems*,
# system/etc/etc,system/activation/pre-switch-check,config/{nix,shells-environment,system-environment},
# config/users-groups,programs/fuse,services/networking/firewall,misc/assertions}.nix and
# nixos/lib/systemd-{lib,types,unit-options}.nix); and how NixOS writes units. What the modules would set
# beside these is an error, as an unknown option is in NixOS.
{ lib, pkgs }:

let
  inherit (lib) mkOption types;

  option = type: default: mkOption { inherit type default; };
  required = type: mkOption { inherit type; };
  flag = option types.bool;
  text = option types.str "";
  strings = option (types.listOf types.str) [ ];
  packages = option (types.listOf types.package) [ ];

  # A key of a unit's section: lists and single values add up if one is a list; else all are equal.
  unitValue = types.oneOf [
    types.bool
    types.int
    types.float
    types.str
    types.path
    types.package
  ];
  unitOption = lib.mkOptionType {
    name = "systemd option";
    check = value: unitValue.check value || (lib.isList value && lib.all unitValue.check value);
    merge =
      loc: defs:
      let
        kept = lib.filterOverrides defs;
      in
      if lib.any (def: lib.isList def.value) kept then
        lib.concatMap (def: lib.toList def.value) kept
      else
        lib.mergeEqualOption loc kept;
  };
  section = option (types.attrsOf unitOption) { };

  # A value of nix.conf; null is an empty one.
  nixValue = types.nullOr (
    types.oneOf [
      types.bool
      types.int
      types.float
      types.str
      types.path
      types.package
    ]
  );

  # The value of a variable; of a list, the parts of a search path.
  variables = option (types.attrsOf (
    types.oneOf [
      (types.listOf (
        types.oneOf [
          types.int
          types.str
          types.path
        ]
      ))
      types.int
      types.str
      types.path
    ]
  )) { };

  unitName = types.strMatching "[a-zA-Z0-9@%:_.\\-]+[.](service|socket|device|mount|automount|swap|target|path|timer|scope|slice)";
  units = option (types.listOf unitName) [ ];

  common = {
    enable = flag true;
    description = text;
    documentation = strings;
    aliases = units;
    requires = units;
    wants = units;
    upholds = units;
    after = units;
    before = units;
    bindsTo = units;
    partOf = units;
    conflicts = units;
    requisite = units;
    wantedBy = units;
    requiredBy = units;
    upheldBy = units;
    unitConfig = section;
    restartTriggers = option (types.listOf types.unspecified) [ ];
    reloadTriggers = option (types.listOf types.unspecified) [ ];
    onFailure = units;
    onSuccess = units;
    startLimitBurst = required types.int;
    startLimitIntervalSec = required types.int;
    stopIfChanged = flag true;
    overrideStrategy = option (types.enum [
      "asDropinIfExists"
      "asDropin"
    ]) "asDropinIfExists";
  };
  lines = option types.lines "";
  service =
    { config, name, ... }:
    {
      options = common // {
        environment = option (types.attrsOf (
          types.nullOr (
            types.oneOf [
              types.str
              types.path
              types.package
            ]
          )
        )) { };
        path = option (types.listOf (
          types.oneOf [
            types.package
            types.str
          ]
        )) [ ];
        serviceConfig = section;
        script = lines;
        scriptArgs = text;
        preStart = lines;
        postStart = lines;
        reload = lines;
        preStop = lines;
        postStop = lines;
        jobScripts = option (types.coercedTo types.path lib.singleton (types.listOf types.path)) [ ];
        restartIfChanged = flag true;
        reloadIfChanged = flag false;
        notSocketActivated = flag false;
        startAt = option (types.either types.str (types.listOf types.str)) [ ];
      };
      config.serviceConfig = lib.mkIf (config.script != "") {
        ExecStart = "/nix/store/${nothing}-unit-script-${name}-start/bin/${name}-start";
      };
    };
  unitsOf = module: option (types.attrsOf (types.submodule module)) { };
  withSection =
    key:
    unitsOf {
      options = common // {
        ${key} = section;
        listenStreams = strings;
        listenDatagrams = strings;
      };
    };

  nothing = "00000000000000000000000000000000";

  # What the initial ramdisk mounts, by its systemd.
  isForBoot =
    fileSystem:
    fileSystem.neededForBoot
    || lib.elem fileSystem.mountPoint [
      "/"
      "/nix"
      "/nix/store"
      "/usr"
      "/var"
      "/var/lib"
      "/var/log"
      "/etc"
    ];
  initrd = fileSystem: lib.optionalString (isForBoot fileSystem) "/sysroot";
  overlayDirectories =
    fileSystem:
    fileSystem.overlay.lowerdir
    ++ lib.optionals (fileSystem.overlay.upperdir != null) [
      fileSystem.overlay.upperdir
      fileSystem.overlay.workdir
    ];
  fstabLine =
    fileSystem:
    lib.concatStringsSep " " [
      fileSystem.device
      fileSystem.mountPoint
      fileSystem.fsType
      (lib.concatStringsSep "," fileSystem.options)
      "0"
      (
        if fileSystem.noCheck || fileSystem.fsType == "overlay" || fileSystem.fsType == "tmpfs" then
          "0"
        else
          "2"
      )
    ];
  # The name of a mount unit, of directories that need no escape.
  unitOf = directory: lib.replaceStrings [ "/" ] [ "-" ] (lib.removePrefix "/" directory);

  # systemd.nix's way with values: no key for null, a line for each of a list.
  keys =
    attrs:
    let
      value = v: if lib.isBool v then lib.boolToString v else toString v;
      line = name: v: "${name}=${value v}";
    in
    lib.concatLists (
      lib.mapAttrsToList (
        name: v: if lib.isList v then map (line name) v else lib.optional (v != null) (line name v)
      ) attrs
    );
  unitSection =
    unit:
    let
      list = key: names: lib.optionalAttrs (names != [ ]) { ${key} = toString names; };
    in
    [ "[Unit]" ]
    ++ keys (
      lib.optionalAttrs (unit.description != "") { Description = unit.description; }
      // list "After" unit.after
      // list "Before" unit.before
      // list "BindsTo" unit.bindsTo
      // list "Conflicts" unit.conflicts
      // list "PartOf" unit.partOf
      // list "Requires" unit.requires
      // list "Wants" unit.wants
      // list "X-Restart-Triggers" (map toString unit.restartTriggers)
      // list "X-Reload-Triggers" (map toString unit.reloadTriggers)
      // unit.unitConfig
    );
  install =
    unit:
    lib.optionals (unit.wantedBy ++ unit.requiredBy != [ ]) (
      [ "[Install]" ]
      ++ keys {
        WantedBy = unit.wantedBy;
        RequiredBy = unit.requiredBy;
      }
    );
  serviceText =
    unit:
    lib.concatLines (
      unitSection unit
      ++ [ "[Service]" ]
      ++ lib.optional (unit.path != [ ]) (
        "Environment=\"PATH=" + lib.concatMapStringsSep ":" (package: "${package}/bin") unit.path + "\""
      )
      ++ lib.concatLists (
        lib.mapAttrsToList (
          name: value:
          lib.optional (value != null) "Environment=${builtins.toJSON "${name}=${toString value}"}"
        ) unit.environment
      )
      ++ lib.optional (!unit.restartIfChanged) "X-RestartIfChanged=false"
      ++ lib.optional (!unit.stopIfChanged) "X-StopIfChanged=false"
      ++ keys unit.serviceConfig
    );
  otherText =
    name: key: unit:
    lib.concatLines (
      unitSection unit
      ++ [ "[${name}]" ]
      ++ map (stream: "ListenStream=${stream}") unit.listenStreams
      ++ keys unit.${key}
    );
in
{ config, ... }:
{
  options = {
    assertions = option (types.listOf types.unspecified) [ ];
    warnings = option (types.listOf types.str) [ ];

    boot.initrd.availableKernelModules = strings;
    boot.initrd.kernelModules = strings;
    boot.kernelModules = strings;

    environment.systemPackages = packages;
    environment.sessionVariables = variables;
    environment.variables = variables;
    environment.etc = option (types.attrsOf (
      types.submodule (
        { name, config, ... }:
        {
          options = {
            enable = flag true;
            target = option types.str name;
            text = option (types.nullOr types.lines) null;
            source = option types.path "/nix/store/${nothing}-etc-${name}";
            mode = option types.str "symlink";
            uid = option types.int 0;
            gid = option types.int 0;
            user = option types.str "+${toString config.uid}";
            group = option types.str "+${toString config.gid}";
          };
        }
      )
    )) { };

    fileSystems = option (types.attrsOf (
      types.submodule (
        { name, config, ... }:
        {
          options = {
            enable = flag true;
            mountPoint = option (types.strMatching "/.*") name;
            device = option (types.nullOr types.nonEmptyStr) null;
            label = option (types.nullOr types.nonEmptyStr) null;
            fsType = option types.nonEmptyStr "auto";
            options = option (types.nonEmptyListOf types.nonEmptyStr) [
              "defaults"
            ];
            depends = option (types.listOf types.nonEmptyStr) [ ];
            noCheck = flag false;
            neededForBoot = flag false;
            autoFormat = flag false;
            autoResize = flag false;
            formatOptions = option (types.nullOr types.str) null;
            overlay = {
              lowerdir = option (types.nullOr (types.nonEmptyListOf (types.either types.str types.pathInStore))) null;
              upperdir = option (types.nullOr types.str) null;
              workdir = option (types.nullOr types.str) null;
              useStage1BaseDirectories = flag true;
            };
          };
          config = lib.mkMerge [
            (lib.mkIf (lib.elem config.fsType [ "tmpfs" ]) { device = lib.mkDefault config.fsType; })
            (lib.mkIf (config.overlay.lowerdir != null) {
              fsType = "overlay";
              device = lib.mkDefault "overlay";
              depends = overlayDirectories config;
              options = [
                "lowerdir=${lib.concatMapStringsSep ":" (dir: initrd config + dir) config.overlay.lowerdir}"
              ]
              ++ lib.optionals (config.overlay.upperdir != null) [
                "upperdir=${initrd config}${config.overlay.upperdir}"
                "workdir=${initrd config}${config.overlay.workdir}"
              ];
            })
            {
              options = lib.mkMerge [
                (lib.mkIf (isForBoot config) [ "x-initrd.mount" ])
                (lib.mkIf (config.depends != [ ]) (
                  map (dir: "x-systemd.requires-mounts-for=${initrd config}${dir}") config.depends
                ))
              ];
            }
          ];
        }
      )
    )) { };

    # Chapters of the manual.
    meta.doc = option types.raw null;

    networking.firewall.allowedTCPPorts = option (types.listOf types.port) [ ];

    nix.package = option types.package pkgs.nix;
    nix.gc.automatic = flag false;
    nix.optimise.automatic = flag false;
    nix.settings = option (types.submodule {
      freeformType = types.attrsOf (types.either nixValue (types.listOf nixValue));
    }) { };

    programs.fuse = {
      enable = flag false;
      mountMax = option (types.ints.between 0 32767) 1000;
      userAllowOther = flag false;
    };

    system.fsPackages = packages;
    system.preSwitchChecks = option (types.attrsOf types.str) { };
    system.stateVersion = option types.str "26.05";

    systemd = {
      package = option types.package pkgs.systemd;
      inherit packages;
      settings.Manager = section;
      services = unitsOf service;
      sockets = withSection "socketConfig";
      timers = withSection "timerConfig";
      tmpfiles.settings = option (types.attrsOf (
        types.attrsOf (
          types.attrsOf (
            types.submodule (
              { name, ... }:
              {
                options = {
                  type = option types.str name;
                  mode = option types.str "-";
                  user = option types.str "-";
                  group = option types.str "-";
                  age = option types.str "-";
                  argument = text;
                };
              }
            )
          )
        )
      )) { };
      units = mkOption {
        readOnly = true;
        default =
          let
            write =
              suffix: toText: named:
              lib.mapAttrs' (
                name: unit:
                lib.nameValuePair "${name}.${suffix}" {
                  inherit (unit) wantedBy requiredBy;
                  text = toText unit;
                  # As a whole, for systemd-analyze.
                  whole = toText unit + lib.concatLines (install unit);
                }
              ) named;
          in
          write "service" serviceText config.systemd.services
          // write "socket" (otherText "Socket" "socketConfig") config.systemd.sockets
          // write "timer" (otherText "Timer" "timerConfig") config.systemd.timers;
      };
    };

    users.users = option (types.attrsOf (
      types.submodule (
        { name, ... }:
        {
          options = {
            name = option types.str name;
            description = text;
            isSystemUser = flag false;
            isNormalUser = flag false;
            group = text;
            extraGroups = strings;
            home = option types.path "/var/empty";
            createHome = flag false;
            uid = option (types.nullOr types.int) null;
          };
        }
      )
    )) { };
    users.groups = option (types.attrsOf (
      types.submodule {
        options = {
          gid = option (types.nullOr types.int) null;
          members = strings;
        };
      }
    )) { };
  };

  config.environment.etc.fstab.text = lib.concatLines (
    map fstabLine (lib.attrValues config.fileSystems)
  );

  config.systemd.services = {
    # As the module of Nix' collector has it, whether a timer runs it or not.
    nix-gc = {
      script = "exec nix-collect-garbage";
      serviceConfig.Type = "oneshot";
    };
  }
  # The directories of overlays, outside of the initial ramdisk.
  // lib.mapAttrs' (
    _: fileSystem:
    lib.nameValuePair "rw-${unitOf fileSystem.mountPoint}" rec {
      requiredBy = [ "${unitOf fileSystem.mountPoint}.mount" ];
      before = requiredBy;
      unitConfig = {
        DefaultDependencies = false;
        RequiresMountsFor = "${fileSystem.overlay.upperdir} ${fileSystem.overlay.workdir}";
      };
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${pkgs.coreutils}/bin/mkdir -p -m 0755 ${fileSystem.overlay.upperdir} ${fileSystem.overlay.workdir}";
      };
    }
  ) (lib.filterAttrs (_: fs: fs.overlay.upperdir != null && !isForBoot fs) config.fileSystems);

  config.assertions = lib.mapAttrsToList (name: user: {
    assertion =
      lib.count lib.id [
        user.isSystemUser
        user.isNormalUser
      ] == 1
      && user.group != "";
    message = "users.users.${name}: exactly one of isSystemUser and isNormalUser, and a group";
  }) config.users.users;
}
