# What the modules need of NixOS and of its packages, for where there is nixpkgs' `lib` and nothing
# else: the options that they set, loosely typed, and units rendered the way NixOS renders drop-ins.
# On NixOS itself the same cases run against the real thing (`checks.<system>.evaluation-nixos`).
{ lib }:

let
  inherit (lib) mkOption types;

  anything =
    default:
    mkOption {
      type = types.anything;
      inherit default;
    };
  list = mkOption {
    type = types.listOf types.anything;
    default = [ ];
  };

  # No store is needed to evaluate: a package is its name.
  package = name: {
    type = "derivation";
    inherit name;
    outPath = "/nix/store/00000000000000000000000000000000-${name}";
    meta.mainProgram = name;
  };

  valueType =
    types.nullOr (
      types.oneOf [
        types.bool
        types.int
        types.float
        types.str
        types.path
        (types.attrsOf valueType)
        (types.listOf valueType)
      ]
    )
    // {
      description = "TOML value";
    };
in
rec {
  pkgs = {
    castore-fs = package "castore-fs";
    attr = package "attr";
    util-linux = package "util-linux";
    systemd = package "systemd";
    runtimeShell = "/bin/sh";
    runCommand =
      name: _: _:
      package name;
    formats.toml = _: {
      type = valueType;
      generate = name: _: package name;
    };
    stdenv = {
      buildPlatform.canExecute = _: true;
      hostPlatform.system = "x86_64-linux";
    };
  };

  module =
    { config, ... }:
    let
      line = name: value: if lib.isList value then map (line' name) value else [ (line' name value) ];
      line' =
        name: value: "${name}=${if lib.isBool value then lib.boolToString value else toString value}";
      lines = attrs: lib.concatLists (lib.mapAttrsToList line attrs);
    in
    {
      options = {
        assertions = list;
        warnings = list;
        meta = anything { };
        boot.initrd.availableKernelModules = list;
        environment.systemPackages = list;
        environment.etc = anything { };
        fileSystems = mkOption {
          type = types.attrsOf (
            types.submodule {
              freeformType = types.attrsOf types.anything;
              options.fsType = mkOption { default = "auto"; };
            }
          );
          default = { };
        };
        networking.firewall.allowedTCPPorts = list;
        programs.fuse = {
          enable = anything false;
          userAllowOther = anything false;
        };
        system.fsPackages = list;
        system.stateVersion = anything null;
        systemd = {
          package = anything pkgs.systemd;
          packages = list;
          services = mkOption {
            default = { };
            type = types.attrsOf (
              types.submodule {
                options = {
                  description = anything "";
                  script = anything "";
                  wantedBy = list;
                  wants = list;
                  after = list;
                  path = list;
                  reloadTriggers = list;
                  restartIfChanged = anything true;
                  stopIfChanged = anything true;
                  serviceConfig = mkOption {
                    type = types.attrsOf types.anything;
                    default = { };
                  };
                };
              }
            );
          };
          sockets = anything { };
          tmpfiles.settings = anything { };
          units = mkOption {
            readOnly = true;
            default = lib.mapAttrs' (
              name: service:
              lib.nameValuePair "${name}.service" {
                inherit (service) wantedBy;
                text = lib.concatLines (
                  [ "[Unit]" ]
                  ++ map (unit: "After=${unit}") service.after
                  ++ map (unit: "Wants=${unit}") service.wants
                  ++ [ "[Service]" ]
                  ++ lines service.serviceConfig
                );
              }
            ) config.systemd.services;
          };
        };
        users = anything { };
      };
    };

  evaluate =
    modules:
    (lib.evalModules {
      specialArgs = { inherit pkgs; };
      modules = [ module ] ++ modules;
    });
}
